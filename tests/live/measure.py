"""How good and how soon live captions are, on toy speech that the model never met.

    python -m tests.live.measure                          # both policies, real time, over a websocket
    python -m tests.live.measure --streams 2,4,8 --cores 1 --live-only
    python -m tests.live.measure --streams 1,2,3 --shape canary-180m-flash --quantize 8
    python -m tests.live.measure --hours 1 --speed 4 --policy alignatt
    python -m tests.live.measure --simulate --step 0.3 --margin 0.5   # no websocket; time is sound heard

Starts a server of its own. Needs espeak-ng. WER counts capitals and punctuation too. Sessions that run at once speak
sentences of their own. With a shape, the model has random weights and writes as `paced` says.
"""

import argparse
import asyncio
import os
import random
import re
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from tests.bench.machine import cpu_name
from tests.live.paced import LEAD_S, WORD_S
from tests.live.random_archive import FLASH, random_archive
from tests.live.speaking import FRAME_S, Shown, Speech, offline, speech, streamed
from tests.live.streams import Session, Streams, most, table, watched
from tests.serving import Served
from tests.toy.score import edit_distance
from tests.toy.speech import load_spoken, save_spoken

POLICIES = ("alignatt", "agreement")


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


@dataclass
class Placed:
    """A word of a final text: when it first appeared, and when it was certain."""

    word: str
    appeared: float
    certain: float


def placed_words(shown: Shown) -> list[tuple[float, list[Placed]]]:
    """The words of each segment, with the time in the sound that the segment begins at."""
    segments = []
    by_segment: dict[int, list[tuple[float, dict]]] = {}
    for at, message in shown.results:
        by_segment.setdefault(message["segment_id"], []).append((at, message))
    for events in by_segment.values():
        final, words = events[-1][1]["text"], []
        for k, match in enumerate(re.finditer(r"\S+", final)):
            word = _bare(match.group())
            end = match.start() + len(match.group().rstrip(".,?!"))
            seen = (at for at, m in events if len(w := m["text"].split()) > k and _bare(w[k]) == word)
            stays = (at for at, m in events if m["stable_chars"] >= end)
            words.append(Placed(word, next(seen), next(stays)))
        segments.append((events[0][1]["start"], words))
    return segments


def delays(said: Speech, shown: Shown) -> tuple[list[float], list[float]]:
    """Of the words that came out right: seconds from the end of each to its first appearance, and to where it stays."""
    placed = [word for _, words in placed_words(shown) for word in words]
    mine, theirs = [_bare(word) for word, _, _ in said.words], [each.word for each in placed]
    first, stable = [], []
    for block in SequenceMatcher(None, mine, theirs, autojunk=False).get_matching_blocks():
        for i in range(block.size):
            end = said.words[block.a + i][2]
            first.append(placed[block.b + i].appeared - end)
            stable.append(placed[block.b + i].certain - end)
    return first, stable


def paced_delays(shown: Shown) -> tuple[list[float], list[float]]:
    """`delays` of the words that `paced` makes up."""
    timed = [
        (start + LEAD_S + (number + 1) * WORD_S, word)
        for start, words in placed_words(shown)
        for number, word in enumerate(words)
    ]
    return [word.appeared - end for end, word in timed], [word.certain - end for end, word in timed]


def _bare(word: str) -> str:
    return word.lower().strip(".,?!¿¡")


async def simulated(model: str, policy: str, speeches: dict[str, list[Speech]], options: argparse.Namespace) -> None:
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
    for language, (said, *_) in speeches.items():
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

            async def anew(window, tasks, given, last, look=None, tails=(), decoder=decoder):
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
                        told |= {"stable_chars": event.stable, "is_final": event.is_final, "start": event.start}
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
    first, stable = [[d for pair in pairs for d in pair[i]] for i in (0, 1)]
    lag = max((seconds for h in shown for seconds in h.lags), default=0.0)
    print(
        f"{name}: {count} words, WER live {live:.2%}{told}; to appearance {_median(first)}, to commit "
        f"{_median(stable)}; worst lag told {lag:.1f} s",
        flush=True,
    )


def _median(seconds: list[float]) -> str:
    if not seconds:
        return "unknown (no word is right)"
    return f"median {np.median(seconds):.2f} s (95 %: {np.percentile(seconds, 95):.2f})"


async def measure(options: argparse.Namespace, policy: str, speeches: dict[str, list[Speech]]) -> None:
    """Sessions over websockets, as many at once as asked for, time after time. speeches: one for each session."""
    asked = ["--model", options.model, "--live-policy", policy, "--live-step", str(options.step)]
    asked += ["--max-live-sessions", "64", *(["--quantize", str(options.quantize)] if options.quantize else [])]
    cache = Path(options.model).parent if options.shape else None
    with watched(*asked, cores=options.cores, is_paced=bool(options.shape), cache=cache) as server:
        before = server.served.resident_mb
        grown = asyncio.create_task(_watched(server.served))
        for language, said in speeches.items():
            name, measured = f"{policy} {language}", []
            for count in options.streams:
                with server.noting() as noted:
                    shown = await _together(server.served.url, said[:count], options, language)
                heard = [(s, h) for s, h in zip(said, shown, strict=False) if not h.refused]
                delayed = (paced_delays(h) if options.shape else delays(s, h) for s, h in heard)
                sessions = [Session(*each, h.lags) for each, (_, h) in zip(delayed, heard, strict=True)]
                measured.append(Streams(options.step, sessions, count - len(heard), noted))
                print(table(measured[-1:]), file=sys.stderr, flush=True)
                if not options.shape and heard:
                    spoken = [s for s, _ in heard]
                    whole = [await _offline(server.served.url, s, options, language) for s in spoken]
                    _print(name, spoken, [h for _, h in heard], whole)
                    if options.mistakes:
                        print(*mistakes(spoken[0], heard[0][1].words), sep="\n", flush=True)
            print(f"{name}: {_setting(options)}\n\n{table(measured)}\n")
            print(f"keeps up with {most(measured)} at a step of {options.step:g} s", flush=True)
        grown.cancel()
        memory = (await asyncio.gather(grown, return_exceptions=True))[0]
        print(f"  memory: {before:.0f} MB at first, then {memory}", flush=True)


async def _together(url: str, said: list[Speech], options: argparse.Namespace, language: str) -> list[Shown]:
    """What is shown to sessions that begin within the same second."""
    start = {"language": language, "target_language": options.translate}
    drawn = random.Random(options.seed)
    waits = [drawn.uniform(0, 1) if len(said) > 1 else 0.0 for _ in said]
    sessions = (streamed(url, each, options.speed, start, wait_s) for each, wait_s in zip(said, waits, strict=True))
    return await asyncio.gather(*sessions)


async def _offline(url: str, said: Speech, options: argparse.Namespace, language: str) -> list[str]:
    return [] if options.live_only else await asyncio.to_thread(offline, url, said, language)


def _setting(options: argparse.Namespace) -> str:
    """What was measured, and on what."""
    model = f"{options.shape} with random weights" if options.shape else options.model
    bits = f" in {options.quantize} bits" if options.quantize else ""
    cores = f"{options.cores} of {os.cpu_count()} cores ({cpu_name()}), and as many threads for products"
    return f"{model}{bits}; the server has {cores}"


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
    parser.add_argument("--shape", choices=FLASH, help="instead of a model: random weights, paced as speech")
    parser.add_argument("--quantize", type=int, help="bits of the model's large layers")
    parser.add_argument("--policy", choices=POLICIES, help="by default both, one after the other")
    parser.add_argument("--languages", default="en,de")
    parser.add_argument("--seconds", type=float, default=120.0, help="of speech in each language")
    parser.add_argument("--hours", type=float, help="of speech, in the first language only")
    parser.add_argument("--speed", type=float, default=1.0, help="times real time")
    parser.add_argument("--streams", type=_numbers, default=[1], help="at once, such as 1,2,4: one after the other")
    parser.add_argument("--cores", type=int, default=1, help="that the server may use (default %(default)s)")
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
    if options.shape and options.simulate:
        parser.error("--shape needs a server; it does not go with --simulate")
    if options.words:
        load_spoken(options.words)
    languages = options.languages.split(",")[: 1 if options.hours or options.shape else None]
    seconds = options.hours * 3600 if options.hours else options.seconds
    seeds = [options.seed + 1000 * session for session in range(max(options.streams))]
    speeches = {language: [speech(language, seconds, seed) for seed in seeds] for language in languages}
    if len(seeds) > 1:
        # All speak to the end, or there would be fewer at once.
        speeches = {language: [each.until(seconds) for each in said] for language, said in speeches.items()}
    if options.words:
        save_spoken(options.words)
    with ExitStack() as stack:
        if options.shape:
            options.model = str(stack.enter_context(random_archive(options.shape)))
        for policy in [options.policy] if options.policy else POLICIES:
            if options.simulate:
                asyncio.run(simulated(options.model, policy, speeches, options))
            else:
                asyncio.run(measure(options, policy, speeches))


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
