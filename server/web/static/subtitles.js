// Captions as txt, srt and vtt.
//
// A line is {start, end, text, words?, translation?: {text}}; times in seconds. A cue's limits are
// {max_characters, max_s}: how long its text may be, and about how long it is shown.

export const MEDIA_TYPES = { txt: "text/plain", srt: "application/x-subrip", vtt: "text/vtt" };

/** The content of a file. format: "txt", "srt" or "vtt"; which: "text", "translation" or "both". */
export function write(format, lines, which, limits) {
  return { txt: toText, srt: toSrt, vtt: toVtt }[format](lines, which, limits);
}

export function toText(lines, which = "text") {
  const blocks = lines.map((line) => texts(line, which).join("\n")).filter(Boolean);
  return blocks.join(which === "both" ? "\n\n" : "\n") + "\n";
}

export function toSrt(lines, which, limits) {
  const cues = allCues(lines, which, limits);
  return cues.map((cue, i) => `${i + 1}\n${clock(cue.start, ",")} --> ${clock(cue.end, ",")}\n${cue.text}\n`).join("\n");
}

export function toVtt(lines, which, limits) {
  const cues = allCues(lines, which, limits);
  return "WEBVTT\n" + cues.map((cue) => `\n${clock(cue.start, ".")} --> ${clock(cue.end, ".")}\n${escaped(cue.text)}\n`).join("");
}

/** 3661.5 → 01:01:01.500 */
export function clock(seconds, decimalMark) {
  const milliseconds = Math.round(seconds * 1000);
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  const rest = String(milliseconds % 1000).padStart(3, "0");
  return `${two(milliseconds / 3600000)}:${two((milliseconds / 60000) % 60)}:${two((milliseconds / 1000) % 60)}${decimalMark}${rest}`;
}

function texts(line, which) {
  const spoken = oneRow(line.text);
  const translated = oneRow(line.translation?.text ?? "");
  return { text: [spoken], translation: [translated], both: [spoken, translated] }[which].filter(Boolean);
}

/** {start, end, text} of each cue. Cues never overlap, and each ends after it starts. */
function allCues(lines, which, limits) {
  const cues = lines.flatMap((line) => lineCues(line, texts(line, which), limits));
  cues.forEach((cue, i) => {
    if (i + 1 < cues.length) cue.end = Math.min(cue.end, Math.max(cues[i + 1].start, cue.start));
    cue.end = Math.max(cue.end, cue.start + 0.001);
  });
  return cues;
}

/** One line as one cue, or as several if it is long. It is cut between words, at their times where those are known. */
function lineCues({ start, end, words }, rows, limits) {
  if (!rows.length) return [];
  // A single word may be too long; it stays whole.
  const isTooLong = (part) => part.length > limits.max_characters && part.includes(" ");
  let count = Math.max(Math.ceil((end - start) / limits.max_s), 1);
  while (rows.some((row) => split(row, count).some(isTooLong))) count++;
  const parts = rows.map((row) => split(row, count));
  const cues = [];
  let characters = 0;
  for (let i = 0; i < count; i++) {
    const text = parts.map((part) => part[i]).filter(Boolean).join("\n");
    const at = timeAt(characters / rows[0].length, { start, end, words }, rows[0]);
    characters += (parts[0][i]?.length ?? 0) + 1;
    if (text) cues.push({ start: at, end: timeAt(characters / rows[0].length, { start, end, words }, rows[0]), text });
  }
  return cues;
}

/** The row in `count` parts of about the same length, cut between words. Parts may be empty. */
function split(row, count) {
  const parts = Array.from({ length: count }, () => []);
  let written = 0;
  for (const word of row.split(" ")) {
    parts[Math.min(count - 1, Math.floor(((written + word.length / 2) / row.length) * count))].push(word);
    written += word.length + 1;
  }
  return parts.map((part) => part.join(" "));
}

/** The time at which this share of the row's characters has been spoken. */
function timeAt(share, { start, end, words }, row) {
  if (share <= 0) return start;
  if (share >= 1) return end;
  if (words?.length && words.map((word) => word.word).join(" ") === row) {
    let written = 0;
    for (const word of words) {
      if (written >= share * row.length - 0.5) return word.start;
      written += word.word.length + 1;
    }
  }
  return start + share * (end - start);
}

function oneRow(text) {
  // A blank row would end a cue, and "-->" would start one.
  return text.split(/\s+/).filter(Boolean).join(" ").replaceAll("-->", "→");
}

function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
