// A recording and its translation, line by line beside each other: it is written out in both languages at once.

import { transcribe } from "./files.js";

/**
 * onLine(line) is called for each line, and again when its translation grows; onTime(seconds) tells how far the spoken
 * text is; others as for `transcribe`. Rejects as that does.
 */
export async function transcribeBeside(url, file, { targetLanguage, onUpload, onLine, onTime, ...options }) {
  const lines = [];
  const translated = [];
  const failed = new AbortController();
  options.signal = AbortSignal.any([options.signal, failed.signal]);
  const showTranslations = () => {
    if (!lines.length) return;
    pair(lines, translated).forEach((text, i) => {
      if (text === (lines[i].translation?.text ?? "")) return;
      lines[i].translation = { text, language: targetLanguage };
      onLine(lines[i]);
    });
  };
  const spoken = transcribe(url, file, {
    ...options,
    onUpload,
    onSegment: (segment) => {
      const language = options.language === "auto" ? "" : options.language;
      lines.push({ ...segment, id: `${lines.length}`, language, translation: null });
      onLine(lines.at(-1));
      onTime(segment.end);
      showTranslations();
    },
  });
  const translation = targetLanguage && transcribe(url, file, {
    ...options,
    targetLanguage,
    onUpload: () => {},
    onSegment: (segment) => {
      translated.push(segment);
      showTranslations();
    },
  });
  try {
    const [whole] = await Promise.all([spoken, translation]);
    for (const line of lines) {
      line.language = whole.language;
      onLine(line);
    }
  } finally {
    // One without the other is not wanted.
    failed.abort();
  }
}

/** The translated segments' texts, each put to the line that it shares most time with. There must be lines. */
export function pair(lines, translated) {
  const texts = lines.map(() => []);
  for (const segment of translated) {
    const shared = lines.map((line) => Math.min(line.end, segment.end) - Math.max(line.start, segment.start));
    texts[shared.indexOf(Math.max(...shared))].push(segment.text);
  }
  return texts.map((parts) => parts.join(" "));
}
