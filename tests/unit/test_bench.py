"""The bench measures what it says, on the toy and with few repetitions: that it works, not how fast."""

import pytest
from typer.testing import CliRunner

from server.__main__ import main
from server.cli.bench import stages
from server.cli.bench.report import tables

from .conftest import tiny_canary

RESULT = {
    "model": {"name": "tiny", "dtype": "float32", "weights_mb": 1.0},
    "system": {"device": "cpu", "blas": "none", "threads": 1, "platform": "here"},
    "load_s": 0.5,
    "conversion_s": None,
    "single": [
        {"audio_s": 10.0, "tokens": 40, "features_s": 0.01, "encode_s": 0.5, "decode_s": 0.49, "rtfx": 10.0, "cpu_s": 1}
    ],
    "decode": [],
    "encode": [],
    "load": [],
}


@pytest.fixture(scope="module")
def canary():
    return tiny_canary()


def test_one_stream_writes_exactly_four_tokens_a_second_of_audio(canary, monkeypatch):
    written = []
    step = stages.EndlessBatch.step

    def counted(batch):
        done = step(batch)
        written.extend(len(generated.tokens) for generated in done)
        return done

    monkeypatch.setattr(stages.EndlessBatch, "step", counted)
    measured = stages.single_stream(canary, 3.0, repeats=2)
    # One run to warm up, and two that count.
    assert written == [12, 12, 12]
    assert measured.tokens == 12
    assert measured.rtfx == pytest.approx(3.0 / (measured.features_s + measured.encode_s + measured.decode_s))


def test_no_token_ends_a_row_of_an_endless_batch(canary):
    encoded = canary.encodings([stages.sound(1.0)])[0]
    batch = stages.EndlessBatch(canary)
    batch.join([stages.Utterance(0, encoded.vectors, stages.PROMPT, limit=100)])
    done = []
    while batch.rows:
        done += batch.step()
    assert [len(generated.tokens) for generated in done] == [100]


def test_a_steps_cost_is_shared_by_its_rows(canary):
    one, four = stages.decode_costs(canary, [1, 4], audio_s=1.0)
    assert (one.rows, four.rows) == (1, 4)
    assert four.row_ms == pytest.approx(four.step_ms / 4)


def test_tables_leave_out_what_was_not_measured():
    text = tables(RESULT)
    assert "| audio s | tokens | features s | encode s | decode s | RTFx | CPU s |" in text
    assert "|      10 |     40 |      0.010 |    0.500 |    0.490 | 10.0 |  1.00 |" in text
    assert "over HTTP" not in text
    assert "converted" not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seconds", "ten"], "'ten' is not a list of numbers"),
        (["--concurrency", "0"], "not positive"),
        (["--repeats", "0"], "--repeats"),
    ],
)
def test_a_wrong_list_is_a_usage_error(arguments, said):
    result = CliRunner().invoke(main, ["bench", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert said in result.output


def test_plotting_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(main, ["bench", "--plot", "bench.png"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "pip install matplotlib" in result.output
