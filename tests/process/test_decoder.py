"""Audio files that a worker process decodes: the formats, cut-off files, and junk."""

import io
import runpy

import av
import numpy as np
import pytest

from server.audio import workers
from server.audio.decode import AudioLimits, Blocks, decode, decode_blocks
from server.errors import AudioError, AudioTooLong
from tests.muxing import (
    FRAGMENTS,
    audio_frame,
    caf_with_aac,
    cut_at_60_percent,
    encoded,
    loudest_hertz,
    tone,
    written_by_av,
)

MOOV_FIRST = {"moov_size": "20000"}
SUPPORTED = "Unsupported or damaged audio file. Supported: wav, aiff, caf, flac, mp3, m4a, mp4, mov, ogg, webm, aac."
# Container, codec, and the options of the container.
FORMATS = [
    ("ipod", "aac", {}), ("ipod", "alac", {}), ("mp4", "aac", {}), ("mp4", "aac", MOOV_FIRST),
    ("mp4", "aac", FRAGMENTS),
    ("mov", "aac", {}), ("mov", "alac", {}), ("mov", "pcm_s16le", {}), ("mov", "pcm_s24be", {}),
    ("caf", "alac", {}), ("caf", "pcm_s16be", {}), ("caf", "pcm_f32le", {}), ("webm", "libopus", {}),
    ("adts", "aac", {}), ("mp3", "libmp3lame", {}), ("wav", "libmp3lame", {}), ("wav", "adpcm_ms", {}),
]  # fmt: skip


@pytest.mark.parametrize(("container", "codec", "options"), FORMATS)
def test_what_macs_phones_and_browsers_record_gives_the_same_tone(container, codec, options):
    waveform = decode(written_by_av(tone(1.0, 48000, 2), 48000, container, codec, **options))
    assert 15990 <= len(waveform) <= 16000 + 2048
    assert loudest_hertz(waveform[4000:12000]) == pytest.approx(440, abs=2)
    assert np.abs(waveform[4000:12000]).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("subtype", ["ALAC_16", "PCM_24", "ULAW"])
def test_core_audio_as_libsndfile_writes_it_is_read(subtype):
    waveform = decode(encoded(tone(1.0, 48000, 2), 48000, "CAF", subtype))
    assert len(waveform) == pytest.approx(16_000, abs=2)
    assert loudest_hertz(waveform[4000:12000]) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("index_first", [True, False])
def test_core_audio_with_aac_is_read(index_first):
    waveform = decode(caf_with_aac(tone(2.0, 48000, 2), 48000, index_first))
    assert len(waveform) == pytest.approx(32_000, abs=1000)
    assert loudest_hertz(waveform[4000:12000]) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 2), (44100, 2), (48000, 1)])
def test_mp3_of_every_rate_and_channel_count_gives_the_same_tone(rate, channels):
    waveform = decode(encoded(tone(1.0, rate, channels), rate, "MP3"))
    assert len(waveform) == pytest.approx(16_000, abs=10)
    assert loudest_hertz(waveform[4000:12000]) == pytest.approx(440, abs=2)
    assert np.abs(waveform[4000:12000]).max() == pytest.approx(0.5, abs=0.05)


def test_a_film_gives_its_sound():
    file = _film()
    assert loudest_hertz(decode(file)[4000:12000]) == pytest.approx(440, abs=2)


def test_no_decoder_of_pictures_looks_at_a_film():
    script = runpy.run_path(str(workers.SCRIPT))
    with av.open(io.BytesIO(_film()), "r", format="mov", container_options=script["_OPTIONS"]) as container:
        # Only the decoder would know this.
        assert container.streams.video[0].pix_fmt is None
        assert container.streams.audio[0].codec_context.name == "aac"


def test_a_film_without_sound_is_refused():
    with pytest.raises(AudioError) as refused:
        decode(_film(with_sound=False))
    assert str(refused.value) == "The file has no audio track."


def test_a_codec_that_is_not_supported_is_named_with_those_that_are():
    with pytest.raises(AudioError, match=r"codec tta is not supported\. Supported: AAC, ALAC, FLAC, MP3, Opus"):
        decode(written_by_av(tone(1.0, 48000, 2), 48000, "matroska", "tta"))


def truncated(file: bytes) -> tuple[np.ndarray, bool]:
    blocks = Blocks(decode_blocks(file))
    return np.concatenate(list(blocks)), blocks.truncated


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mp4", "aac", MOOV_FIRST), ("mov", "pcm_s16le", MOOV_FIRST), ("mp4", "aac", FRAGMENTS),
        ("caf", "pcm_s16be", {}), ("webm", "libopus", {}), ("matroska", "aac", {}), ("ogg", "libopus", {}),
        ("mp3", "libmp3lame", {}),
        ("wav", "adpcm_ms", {}), ("wav", "libmp3lame", {}),
    ],
)  # fmt: skip
def test_a_cut_off_file_gives_the_audio_before_the_cut_and_is_called_truncated(container, codec, options):
    file = written_by_av(tone(10.0, 48000, 2), 48000, container, codec, **options)
    waveform, is_truncated = truncated(file)
    assert not is_truncated
    assert len(waveform) == pytest.approx(160_000, abs=2048)

    waveform, is_truncated = truncated(cut_at_60_percent(file))
    assert is_truncated
    # Room for the index that was reserved in front is part of the file.
    assert len(waveform) == pytest.approx(96_000, abs=10_000 if options is MOOV_FIRST else 2048)
    assert loudest_hertz(waveform[4000:36000]) == pytest.approx(440, abs=2)


def test_cut_off_core_audio_with_its_index_in_front_gives_the_audio_before_the_cut():
    file = caf_with_aac(tone(10.0, 48000, 2), 48000, index_first=True)
    assert truncated(file)[1] is False
    waveform, is_truncated = truncated(cut_at_60_percent(file))
    assert is_truncated
    assert len(waveform) == pytest.approx(96_000, abs=2048)


@pytest.mark.parametrize(
    ("file", "index"),
    [
        (written_by_av(tone(10.0), 16000, "ipod", "aac"), "moov box"),
        (written_by_av(tone(10.0), 16000, "mov", "alac"), "moov box"),
        (written_by_av(tone(10.0), 16000, "caf", "alac"), "packet table"),
        (caf_with_aac(tone(10.0), 16000, index_first=False), "packet table"),
    ],
    ids=["m4a", "mov", "caf with alac", "caf with aac"],
)
def test_a_cut_off_recording_without_its_index_is_refused_for_that_reason(file, index):
    assert truncated(file)[1] is False
    with pytest.raises(AudioError) as refused:
        decode(cut_at_60_percent(file))
    assert str(refused.value) == (
        f"The file is cut off: the {index} is missing, and without it no audio can be decoded."
    )


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [("webm", "libopus", {}), ("wav", "pcm_s16le", {}), ("adts", "aac", {}), ("mp3", "libmp3lame", {})],
)
def test_a_live_recording_declares_no_length_and_is_not_called_truncated(container, codec, options):
    file = written_by_av(tone(5.0, 48000, 2), 48000, container, codec, seekable=False, **options)
    for part in (file, cut_at_60_percent(file)):
        waveform, is_truncated = truncated(part)
        assert not is_truncated
        assert len(waveform) >= 46_000


@pytest.mark.parametrize(
    ("container", "codec", "options"), [("mp4", "aac", FRAGMENTS), ("ogg", "libopus", {}), ("caf", "pcm_s16be", {})]
)
def test_a_live_recording_that_was_stopped_properly_is_not_called_truncated(container, codec, options):
    waveform, is_truncated = truncated(
        written_by_av(tone(5.0, 48000, 2), 48000, container, codec, seekable=False, **options)
    )
    assert not is_truncated
    assert len(waveform) == pytest.approx(80_000, abs=2048)


@pytest.mark.parametrize("cut", [100, 2000, 6000])
@pytest.mark.parametrize(("container", "codec", "options"), FORMATS)
def test_a_file_cut_off_anywhere_gives_some_audio_or_an_error(container, codec, options, cut):
    whole = written_by_av(tone(), 16000, container, codec, **options)
    try:
        waveform = decode(whole[:cut])
    except AudioError:
        return
    assert 0 < len(waveform) <= 16000 + 2048


def test_a_webm_without_samples_is_called_empty():
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as container:
        container.add_stream("libopus", rate=48000, layout="mono")
        container.start_encoding()
    with pytest.raises(AudioError) as refused:
        decode(file.getvalue())
    assert str(refused.value) == "The audio is empty: the file has a header but no samples."


def test_the_limits_hold_in_the_other_process_too():
    webm = written_by_av(tone(3.0, 48000, 2), 48000, "webm", "libopus")
    with pytest.raises(AudioTooLong, match="longer than the limit of 2 s"):
        decode(webm, AudioLimits(max_s=2))
    with pytest.raises(AudioError, match="48000 Hz; supported: 1000 to 24000 Hz"):
        decode(webm, AudioLimits(max_rate=24000))
    with pytest.raises(AudioError, match="2 channels; supported: 1 to 1"):
        decode(webm, AudioLimits(max_channels=1))


def _film(with_sound: bool = True) -> bytes:
    """A second of a QuickTime film: ten grey pictures, and a tone."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        video = container.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p")
        stream = container.add_stream("aac", rate=48000, layout="stereo") if with_sound else None
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), format="rgb24")
        for packet in [*(p for _ in range(10) for p in video.encode(picture)), *video.encode(None)]:
            container.mux(packet)
        if stream:
            for packet in [*stream.encode(audio_frame(tone(1.0, 48000, 2), 48000)), *stream.encode(None)]:
                container.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    "junk",
    [
        b"\0",
        b"\0" * 1024,
        b"hello, this is no audio",
        b"RIFF\xff\xff\xff\xffWAVE",
        b"FORM\0\0\0\x04AIFF",
        b"fLaC" + b"\0" * 99,
    ],
    ids=["one byte", "zeros", "text", "riff", "aiff", "flac"],
)
def test_junk_is_refused_with_the_supported_formats(junk):
    with pytest.raises(AudioError) as refused:
        decode(junk)
    assert str(refused.value) == SUPPORTED


@pytest.mark.parametrize(
    "file",
    [encoded(tone(), 16000, "WAV")[:30], encoded(tone(), 16000, "WAV")[:44], encoded(tone(), 16000, "OGG")[:200]],
    ids=["within the header", "behind the header", "ogg"],
)
def test_a_file_cut_off_before_its_first_sample_is_called_cut_off(file):
    with pytest.raises(AudioError) as refused:
        decode(file)
    assert str(refused.value) == "The file is cut off, and no audio can be decoded from what is left."
