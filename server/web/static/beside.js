// A recording and its translation side by side: two requests at once, whose lines are paired by time.

import { transcribe } from "./files.js";

/**
 * onLine(line) is called for each line, and again when its translation grows; onTime(seconds) reports how far the text
 * has come. The other options, and the errors, are those of `transcribe`.
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
    // If one request failed, the other is of no use.
    failed.abort();
  }
}

/** For each line, the texts of the translated segments that overlap it most. There must be lines. */
export function pair(lines, translated) {
  const texts = lines.map(() => []);
  for (const segment of translated) {
    const shared = lines.map((line) => Math.min(line.end, segment.end) - Math.max(line.start, segment.start));
    texts[shared.indexOf(Math.max(...shared))].push(segment.text);
  }
  return texts.map((parts) => parts.join(" "));
}
