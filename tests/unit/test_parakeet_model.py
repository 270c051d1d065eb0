"""A whole Parakeet: from sound to a transcript, alone and in company, and what it refuses."""

import numpy as np
import pytest

from model import loading
from model.config import SAMPLE_RATE
from model.decoding import DecodingOptions
from model.parakeet.model import ParakeetModel
from model.task import AUTO, Task, TaskError
from server.cli.doctor.sounds import LENGTHS, sound
from server.engine.batching import Batcher
from server.engine.passes import Pass, PassResult
from tests.libraries import LIBRARIES, computing_with
from tests.parakeet_archives import converted_in

WORDS = Task(timestamps="word")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """folders(name): the converted archive of that name."""
    return converted_in(tmp_path_factory.mktemp("parakeets"))


def loaded(folder, library: str, dtype: str | None = "float32") -> ParakeetModel:
    with computing_with(library):
        model = loading.load(folder, dtype)
    assert isinstance(model, ParakeetModel)
    return model


@pytest.fixture(scope="module", params=LIBRARIES)
def hybrid(request, folders) -> ParakeetModel:
    """With a TDT and a CTC head."""
    return loaded(folders("tdt_ctc"), request.param)


@pytest.fixture(scope="module")
def rnnt(folders) -> ParakeetModel:
    return loaded(folders("rnnt"), LIBRARIES[0])


def passed(batcher: Batcher, passes: list[Pass], together: int) -> list[PassResult]:
    """Their results, `together` of them joining at each step."""
    waiting, outcomes = list(enumerate(passes)), []
    while waiting or batcher.running:
        outcomes += batcher.join(waiting[:together])
        waiting = waiting[together:]
        outcomes += batcher.step()
    by_ticket = dict(outcomes)
    for outcome in by_ticket.values():
        assert isinstance(outcome, PassResult), outcome
    return [by_ticket[ticket] for ticket in range(len(passes))]


def test_a_long_pass_is_encoded_by_attention_to_what_is_near_and_alone(hybrid):
    noise = np.random.default_rng(1).normal(0, 0.1, 30 * SAMPLE_RATE).astype(np.float32)
    long = Pass(noise, (WORDS,), DecodingOptions(one_pass=True))
    batcher = Batcher(hybrid, 16)
    assert batcher.has_room_for(long)
    assert not batcher.has_room_for(long, [Pass(noise, (WORDS,))])
    assert not batcher.has_room_for(Pass(noise, (WORDS,)), [long])
    near, far = (hybrid.encodings([noise], local=local)[0] for local in ((256, 256), None))
    assert not np.allclose(np.array(near.vectors), np.array(far.vectors), atol=1e-3)
    (expected,) = hybrid.generate([hybrid.utterance(0, near, WORDS, DecodingOptions())])
    assert passed(batcher, [long], 1)[0].generated[0].tokens == expected.tokens


def test_passes_of_every_head_and_search_get_in_company_what_they_get_alone(hybrid):
    options = [
        DecodingOptions(head="ctc"),
        DecodingOptions(),
        DecodingOptions(beam_size=3),
        DecodingOptions(max_new_tokens=2),
    ]
    passes = [
        Pass(sound(name), (WORDS,), each) for name in LENGTHS if LENGTHS[name] < 6 * SAMPLE_RATE for each in options
    ]
    alone = [passed(Batcher(hybrid, 16), [each], 1)[0] for each in passes]
    together = passed(Batcher(hybrid, 16), passes, 3)
    for one, other in zip(alone, together, strict=True):
        assert one.generated[0].tokens == other.generated[0].tokens
        assert one.transcripts[0].text == other.transcripts[0].text
    assert len({result.transcripts[0].text for result in alone}) > len(passes) // 2
    assert all(len(result.generated[0].tokens) <= 2 for result in alone[3::4])


def test_words_are_in_order_within_the_audio_and_have_probabilities(hybrid):
    waveform = sound("5.5s")
    for head in ("tdt", "ctc"):
        [transcript] = hybrid.transcribe([waveform], WORDS, DecodingOptions(head=head))
        words = [word for segment in transcript.segments for word in segment.words]
        assert transcript.timestamps_source == "model"
        assert len(words) > 3
        starts = [word.start for word in words]
        assert starts == sorted(starts)
        assert all(0 <= word.start <= word.end <= transcript.duration for word in words)
        assert all(0 < word.probability <= 1 and 0 <= word.confidence <= 1 for word in words)
        assert [token for word in words for token in word.tokens] == [
            token for segment in transcript.segments for token in segment.tokens
        ]


def test_without_times_the_text_is_one_segment_over_the_whole_audio(hybrid):
    waveform = sound("2.37s")
    [plain] = hybrid.transcribe([waveform])
    assert plain.timestamps_source is None
    [segment] = plain.segments
    assert (segment.start, segment.end) == (0.0, len(waveform) / SAMPLE_RATE)
    assert segment.words == ()
    assert segment.avg_logprob < 0
    assert segment.no_speech_prob is None


def test_audio_without_words_has_no_segments(rnnt):
    encoded = rnnt.encodings([np.zeros(800, np.float32)])[0]
    [written] = rnnt.generate([rnnt.utterance(0, encoded, Task(), DecodingOptions(max_new_tokens=1))])
    nothing = written.first(0)
    transcript = rnnt.transcript(nothing, np.zeros(800, np.float32), WORDS, encoded)
    assert (transcript.text, transcript.segments) == ("", ())


def test_the_language_is_the_one_that_is_given_and_never_detected(rnnt):
    """This archive does not say its languages, so it takes any."""
    assert rnnt.config.languages == ()
    passes = [Pass(sound("1s"), (Task(language),), detect_language=True) for language in ("fr", AUTO)]
    given, unknown = passed(Batcher(rnnt, 4), passes, 2)
    assert (given.detection, unknown.detection) == (None, None)
    assert [each.transcripts[0].language for each in (given, unknown)] == ["fr", AUTO]
    with pytest.raises(TaskError, match="rnnt does not detect the language"):
        rnnt.detect_language(rnnt.encodings([sound("1s")])[0])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (Task("en", "de"), DecodingOptions(), "does not translate"),
        (Task(context="names"), DecodingOptions(), "does not support a context"),
        (Task(), DecodingOptions(head="rnnt"), "head 'rnnt' is not supported by tdt_ctc; must be one of tdt, ctc"),
        (Task(), DecodingOptions(3, head="ctc"), "beam_size 3 is not supported by the ctc head of tdt_ctc; must be 1"),
        (Task(), DecodingOptions(3, 0.5), "length_penalty 0.5 is not supported by tdt_ctc; must be 0"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(hybrid, task, options, message):
    encoded = hybrid.encodings([sound("1s")])[0]
    with pytest.raises(TaskError, match=message):
        hybrid.utterance(0, encoded, task, options)


def test_it_refuses_to_continue_a_text(hybrid):
    with pytest.raises(TaskError, match="tdt_ctc does not continue a given text"):
        hybrid.utterance(0, hybrid.encodings([sound("1s")])[0], Task(), DecodingOptions(), prefix=(5,))


def test_it_has_no_cross_attention(rnnt):
    with pytest.raises(NotImplementedError, match="rnnt has no cross-attention"):
        rnnt.attention(rnnt.encodings([sound("1s")])[0], Task(), [1])


def test_a_canary_has_only_one_head(canary, sounds):
    with pytest.raises(TaskError, match="head 'ctc' is not supported by tiny, which has only one"):
        canary.utterance(0, canary.encodings(sounds[:1])[0], Task("en"), DecodingOptions(head="ctc"))


def test_in_16_bits_the_transducer_stays_in_float32(folders):
    parakeet = loaded(folders("tdt_ctc"), "mlx", "bfloat16")
    assert parakeet.dtype == "bfloat16"
    frames = parakeet.joint.frames(parakeet.encodings([sound("1s")])[0].vectors)
    assert {str(each.dtype) for each in (frames, *parakeet._transducer.start(1))} == {"mlx.core.float32"}
    for head in parakeet.config.heads:
        [transcript] = parakeet.transcribe([sound("5.5s")], WORDS, DecodingOptions(head=head))
        assert transcript.text
