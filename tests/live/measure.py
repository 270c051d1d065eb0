"""How good and how soon live captions are, on toy speech that the model never met.

    python -m tests.live.measure                          # both policies, real time, over a websocket
    python -m tests.live.measure --streams 8
    python -m tests.live.measure --hours 1 --speed 4 --policy alignatt
    python -m tests.live.measure --simulate --step 0.3 --margin 0.5   # no websocket; time is sound heard

Starts a server of its own. Needs espeak-ng. WER counts capitals and punctuation too.
"""

import argparse
import asyncio
import io
import json
import random
import re
import time
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import httpx
import numpy as np
import soundfile
import websockets

from tests.serving import Served, serving
from tests.toy.grammar import sentence
from tests.toy.score import edit_distance
from tests.toy.speech import VOICES, WordTime, load_spoken, save_spoken, speak

SAMPLE_RATE = 16_000
FRAME_S = 0.1
POLICIES = ("alignatt", "agreement")


@dataclass
class Speech:
    """Sentences one after the other, and when each word is said."""

    waveform: np.ndarray
    words: list[WordTime]

    @property
    def duration_s(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


@dataclass
class Shown:
    """What a client saw: (seconds since the sound began, a `result` message) in order."""

    results: list[tuple[float, dict]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)

    @property
    def finals(self) -> list[dict]:
        return [message for _, message in self.results if message["is_final"]]

    @property
    def words(self) -> list[str]:
        return [word for message in self.finals for word in message["text"].split()]

    def add(self, at_s: float, message: dict) -> None:
        """Raises AssertionError if text that was certain is not any more."""
        if message["type"] == "lag":
            self.lags.append(message["seconds"])
        if message["type"] == "error":
            raise RuntimeError(message["message"])
        if message["type"] != "result":
            return
        former = next((m for _, m in reversed(self.results) if m["segment_id"] == message["segment_id"]), None)
        if former:
            assert not former["is_final"], "a result after the final one"
            kept = former["text"][: former["stable_chars"]]
            assert message["text"][: message["stable_chars"]].startswith(kept), (former, message)
        self.results.append((at_s, message))


def speech(language: str, seconds: float, seed: int) -> Speech:
    """Held-out sentences by one voice after another, with the pauses of ordinary speech."""
    rng = random.Random(f"live {language} {seed}")
    parts, words, at = [], [], 0.0
    while at < seconds:
        said = [word for _ in range(rng.randint(1, 6)) for word in sentence(rng, "test").words(language)]
        waveform, times = speak(said, language, rng.choice(VOICES[language]), rng, noise=0.002)
        words += [(word, start + at, end + at) for word, start, end in times]
        parts.append(waveform)
        at += len(waveform) / SAMPLE_RATE
    return Speech(np.concatenate(parts), words)


def wrong_words(reference: list[str], found: list[str]) -> int:
    """Words wrong, missing or added. In stretches, so that an hour does not take one: between anchors of 8 words."""
    blocks = SequenceMatcher(None, reference, found, autojunk=False).get_matching_blocks()
    anchors = [b for b in blocks if b.size >= 8 or b.size == 0]
    wrong, a, b = 0, 0, 0
    for anchor in anchors:
        wrong += edit_distance(reference[a : anchor.a], found[b : anchor.b])
        a, b = anchor.a + anchor.size, anchor.b + anchor.size
    return wrong


def mistakes(said: Speech, found: list[str]) -> list[str]:
    """Each place where `found` is not what was said, with seconds."""
    words = [word for word, _, _ in said.words]
    starts = [start for _, start, _ in said.words]
    changes = SequenceMatcher(None, words, found, autojunk=False).get_opcodes()
    return [
        f"  {starts[min(a, len(starts) - 1)]:7.1f} s  {' '.join(words[a:b])!r} is written {' '.join(found[c:d])!r}"
        for kind, a, b, c, d in changes
        if kind != "equal"
    ]


def delays(said: Speech, shown: Shown) -> tuple[list[float], list[float]]:
    """Of the words that came out right: seconds from the end of each to its first appearance, and to where it stays."""
    placed = []  # (word, appeared, stayed)
    by_segment: dict[int, list[tuple[float, dict]]] = {}
    for at, message in shown.results:
        by_segment.setdefault(message["segment_id"], []).append((at, message))
    for events in by_segment.values():
        final = events[-1][1]["text"]
        for k, match in enumerate(re.finditer(r"\S+", final)):
            word = _bare(match.group())
            end = match.start() + len(match.group().rstrip(".,?!"))
            seen = (at for at, m in events if len(w := m["text"].split()) > k and _bare(w[k]) == word)
            stays = (at for at, m in events if m["stable_chars"] >= end)
            placed.append((word, next(seen), next(stays)))
    mine, theirs = [_bare(word) for word, _, _ in said.words], [word for word, _, _ in placed]
    first, stable = [], []
    for block in SequenceMatcher(None, mine, theirs, autojunk=False).get_matching_blocks():
        for i in range(block.size):
            end = said.words[block.a + i][2]
            first.append(placed[block.b + i][1] - end)
            stable.append(placed[block.b + i][2] - end)
    return first, stable


def _bare(word: str) -> str:
    return word.lower().strip(".,?!¿¡")


async def streamed(url: str, said: Speech, speed: float, start: dict) -> Shown:
    """Speak to a server, frame by frame, `speed` times as fast as in life. Times are of the sound: wall × speed."""
    shown = Shown()
    async with websockets.connect(f"{url.replace('http', 'ws', 1)}/stream", max_queue=None) as socket:
        await socket.send(json.dumps({"type": "start", "sample_rate": SAMPLE_RATE, **start}))
        assert json.loads(await socket.recv())["type"] == "ready"
        began = time.monotonic()
        sending = asyncio.create_task(_send(socket, said, speed, began))
        async for text in socket:
            shown.add((time.monotonic() - began) * speed, message := json.loads(text))
            if message["type"] == "done":
                break
        await sending
    return shown


async def _send(socket, said: Speech, speed: float, began: float) -> None:
    pcm = (said.waveform.clip(-1, 1) * 32767).astype("<i2").tobytes()
    size = round(FRAME_S * SAMPLE_RATE) * 2
    for n, at in enumerate(range(0, len(pcm), size)):
        # a frame is there when its last sample has been spoken
        await asyncio.sleep(max(0.0, began + (n + 1) * FRAME_S / speed - time.monotonic()))
        await socket.send(pcm[at : at + size])
    await socket.send('{"type": "stop"}')


def offline(url: str, said: Speech, language: str) -> list[str]:
    """The same sound as a file."""
    file = io.BytesIO()
    soundfile.write(file, said.waveform, SAMPLE_RATE, format="FLAC")
    answer = httpx.post(
        f"{url}/transcribe", params={"language": language}, files={"file": file.getvalue()}, timeout=None
    )
    return answer.raise_for_status().json()["text"].split()


async def simulated(model: str, policy: str, speeches: dict[str, Speech], options: argparse.Namespace) -> None:
    """Sessions without a server, one after the other; what is said is heard in frames and looked at whenever due."""
    from convert.hub import resolve
    from model import loading
    from model.task import Task
    from server.audio.vad import SpeechDetector
    from server.engine.thread import Engine
    from server.live.decoder import EngineDecoder
    from server.live.events import LiveResult
    from server.live.following import Follower, FollowingTranscriber
    from server.live.segment import LiveOptions
    from server.live.session import LiveSession
    from server.live.windows import WindowTranscriber
    from server.longform.transcribe import transcribe_audio

    engine = Engine(lambda: loading.load(resolve(model, dtype="float32"), "float32"))
    info = await engine.start()
    for language, said in speeches.items():
        chosen = LiveOptions(
            language,
            policy=policy,  # type: ignore[arg-type]
            step_s=options.step,
            margin_s=options.margin,
            settle_s=options.settle,
        )
        if info.config.carries_state:
            follower = Follower(engine, word_times=False, left_s=options.left, right_s=options.right)
            session = LiveSession(FollowingTranscriber(follower), chosen)
        else:
            decoder = EngineDecoder(engine, word_times=False)

            async def anew(window, tasks, given, last, look=None, decoder=decoder):
                return await decoder(window, tasks, given, last)

            session = LiveSession(WindowTranscriber(anew if options.anew else decoder, chosen), chosen)
        detector, shown, began = SpeechDetector(), Shown(), time.process_time()
        for frame in [*np.array_split(said.waveform, round(said.duration_s / FRAME_S)), None]:
            if frame is None:
                session.finalize()
            else:
                session.hear(frame, detector.feed(frame))
            while session.due:
                for event in await session.step():
                    if isinstance(event, LiveResult):
                        told = {"type": "result", "segment_id": event.segment, "text": event.text}
                        told |= {"stable_chars": event.stable, "is_final": event.is_final}
                        shown.add(session.heard_s, told)
        share = (time.process_time() - began) / said.duration_s
        whole = []
        if not options.live_only:
            whole = (await transcribe_audio(engine, said.waveform, Task(language))).text.split()
        _print(f"{policy} {language}", [said], [shown], [whole])
        print(f"  {share:.3f} s of processor time for each second of speech, with the VAD", flush=True)
        if options.mistakes:
            print(*mistakes(said, shown.words), sep="\n", flush=True)
    await engine.stop()


def _print(name: str, said: list[Speech], shown: list[Shown], whole: list[list[str]]) -> None:
    count = sum(len(s.words) for s in said)
    live = sum(wrong_words([w for w, _, _ in s.words], h.words) for s, h in zip(said, shown, strict=True)) / count
    filed = sum(wrong_words([w for w, _, _ in s.words], h) for s, h in zip(said, whole, strict=True)) / count
    told = f", offline {filed:.2%}" if any(whole) else ""
    pairs = [delays(s, h) for s, h in zip(said, shown, strict=True)]
    first, stable = [np.array([d for pair in pairs for d in pair[i]]) for i in (0, 1)]
    lag = max((seconds for h in shown for seconds in h.lags), default=0.0)
    print(
        f"{name}: {count} words, WER live {live:.2%}{told}; to appearance median "
        f"{np.median(first):.2f} s (95 %: {np.percentile(first, 95):.2f}), to commit {np.median(stable):.2f} s "
        f"(95 %: {np.percentile(stable, 95):.2f}); worst lag told {lag:.1f} s",
        flush=True,
    )


async def measure(options: argparse.Namespace, policy: str, speeches: dict[str, Speech]) -> None:
    asked = ("--model", options.model, "--live-policy", policy, "--live-step", str(options.step))
    with serving(*asked, "--max-live-sessions", "32") as server:
        before = server.resident_mb
        grown = asyncio.create_task(_watched(server))
        for language, said in speeches.items():
            start = {"language": language, "target_language": options.translate}
            streams = [streamed(server.url, said, options.speed, start) for _ in range(options.streams)]
            shown = await asyncio.gather(*streams)
            whole = [] if options.live_only else await asyncio.to_thread(offline, server.url, said, language)
            _print(f"{policy} {language}", [said] * len(shown), list(shown), [whole] * len(shown))
            if options.mistakes:
                print(*mistakes(said, shown[0].words), sep="\n", flush=True)
        grown.cancel()
        memory = (await asyncio.gather(grown, return_exceptions=True))[0]
        print(f"  memory: {before:.0f} MB at first, then {memory}", flush=True)


async def _watched(server: Served) -> str:
    seen: list[float] = []
    try:
        while True:
            await asyncio.sleep(10)
            seen.append(server.resident_mb)
    except asyncio.CancelledError:
        return " ".join(f"{mb:.0f}" for mb in seen[:: max(1, len(seen) // 12)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="toy")
    parser.add_argument("--policy", choices=POLICIES, help="by default both, one after the other")
    parser.add_argument("--languages", default="en,de")
    parser.add_argument("--seconds", type=float, default=120.0, help="of speech in each language")
    parser.add_argument("--hours", type=float, help="of speech, in the first language only")
    parser.add_argument("--speed", type=float, default=1.0, help="times real time")
    parser.add_argument("--streams", type=int, default=1, help="at once")
    parser.add_argument("--live-only", action="store_true", help="without the same sound offline")
    parser.add_argument("--mistakes", action="store_true", help="show every one, of the first stream")
    parser.add_argument("--translate", help="a target language, beside the transcript")
    parser.add_argument("--step", type=float, default=0.4)
    parser.add_argument("--margin", type=float, default=0.64, help="AlignAtt's, in a simulation")
    parser.add_argument("--settle", type=float, default=2.5, help="in a simulation")
    parser.add_argument("--left", type=float, default=10.0, help="context of a Parakeet, in a simulation")
    parser.add_argument("--right", type=float, default=2.0, help="of a Parakeet, in a simulation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--anew", action="store_true", help="compute the whole window at each look, in a simulation")
    parser.add_argument("--words", type=Path, help="an .npz file of spoken words, kept from run to run")
    options = parser.parse_args()
    if options.words:
        load_spoken(options.words)
    languages = options.languages.split(",")[: 1 if options.hours else None]
    seconds = options.hours * 3600 if options.hours else options.seconds
    speeches = {language: speech(language, seconds, options.seed) for language in languages}
    if options.words:
        save_spoken(options.words)
    for policy in [options.policy] if options.policy else POLICIES:
        if options.simulate:
            asyncio.run(simulated(options.model, policy, speeches, options))
        else:
            asyncio.run(measure(options, policy, speeches))


if __name__ == "__main__":
    main()
