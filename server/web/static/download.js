// The dialog that saves captions as a file.

import { MEDIA_TYPES, write } from "./subtitles.js";

/** Opens `dialog` and saves `lines` in the format chosen there, subtitles within `limits`. */
export function offerDownload(dialog, lines, limits) {
  const which = dialog.querySelector("fieldset");
  which.hidden = !lines.some((line) => line.translation?.text);
  if (which.hidden) dialog.querySelector("[value=text]").checked = true;
  dialog.returnValue = "";
  dialog.onclose = () => {
    const format = dialog.returnValue;
    if (format in MEDIA_TYPES) {
      const chosen = dialog.querySelector("[name=which]:checked").value;
      save(write(format, lines, chosen, limits), `captions.${format}`, MEDIA_TYPES[format]);
    }
  };
  dialog.showModal();
}

function save(text, name, mediaType) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: `${mediaType};charset=utf-8` }));
  link.download = name;
  link.click();
  // Not at once: some browsers would save nothing.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
