"""What the comparison with other programs makes of their answers, on scripted ones: no peer is run."""

import pytest

from tests.bench import blas, machine, peers, rounds, summary, worker


class ScriptedSide:
    """Answers with `answers` in turn, the last one for ever; `log` gets its name each time it is asked."""

    def __init__(self, name, *answers, log):
        self.name, self.answers, self.log = name, list(answers), log

    def asked(self, job):
        self.log.append(self.name)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def answer(total=1.0, cpu=1.0, tokens=((1, 2),), **stages):
    return {"features": 0.0, "encode": 0.0, "decode": 0.0, **stages, "total": total, "cpu": cpu, "tokens": tokens}


@pytest.mark.parametrize(
    ("text", "name", "lengths"),
    [
        ("10", "10 s", (10.0,)),
        ("2x10", "2 of 10 s", (10.0, 10.0)),
        ("3xmixed", "3 of 4 to 22 s", (4.0, 22.0, 9.0)),
    ],
)
def test_a_case_of_the_comparison_is_named_by_its_audios(text, name, lengths):
    case = rounds.case_of(text)
    assert (case.name, case.lengths) == (name, lengths)
    assert case.tokens == [4 * length for length in lengths]
    assert [len(waveform) for waveform in case.waveforms()] == [16000 * length for length in lengths]


def test_the_audios_of_a_case_differ():
    one, other = rounds.case_of("2x10").waveforms()
    assert abs(one - other).max() > 0.1


def test_each_side_works_twenty_seconds_and_at_least_three_rounds():
    log = []
    sides = [ScriptedSide("fast", answer(total=4.0), log=log), ScriptedSide("slow", answer(total=30.0), log=log)]
    answers = rounds.measured(sides, {}, rounds=3, enough_s=20.0)
    assert {name: len(given) for name, given in answers.items()} == {"fast": 6, "slow": 3}
    # A warm-up each, then two jobs of the fast side, which are 8 s, to one of the slow side.
    assert log == ["fast", "slow", *["fast", "fast", "slow"] * 3]


def test_the_warm_up_is_not_counted():
    side = ScriptedSide("side", answer(total=90.0), answer(total=7.0), log=[])
    [counted] = rounds.measured([side], {}, rounds=3, enough_s=20.0).values()
    assert [each["total"] for each in counted] == [7.0, 7.0, 7.0]


def test_a_side_that_fails_is_not_asked_again():
    log = []
    fails = ScriptedSide("fails", answer(), {"error": "MemoryError: "}, log=log)
    works = ScriptedSide("works", answer(total=10.0), log=log)
    answers = rounds.measured([fails, works], {}, rounds=2, enough_s=20.0)
    assert log == ["fails", "works", "fails", "works", "works"]
    assert rounds.figures(answers["fails"], answer(), 1.0, []) == {"error": "MemoryError: "}


def test_a_sides_figures_are_the_least_the_median_and_the_most_of_its_rounds():
    given = [answer(total=s + 1, cpu=s, encode=s, tokens=[[1, 2], [3, 9]]) for s in (1.0, 9.0, 3.0)]
    found = rounds.figures(given, answer(tokens=[[1, 2], [3, 4]]), audio_s=20.0, wanted=[2, 2])
    assert found["total"] == [2.0, 4.0, 10.0]
    # All of a batch's audio counts.
    assert found["rtfx"] == [2.0, 5.0, 10.0]
    assert (found["cpu"], found["encode"]) == ([1.0, 3.0, 9.0], 3.0)
    assert (found["tokens"], found["same_tokens"], found["rounds"]) == (4, 0.75, 3)


def test_a_side_that_writes_another_number_of_tokens_than_it_was_asked_for_has_failed():
    found = rounds.figures([answer(tokens=[[1] * 39])], answer(tokens=[[1] * 40]), 10.0, wanted=[40])
    assert found == {"error": "wrote 39 tokens instead of 40"}


def test_a_side_that_writes_no_tokens_at_all_has_failed():
    found = rounds.figures([answer(tokens=[[]])], answer(tokens=[[1] * 40]), 10.0, wanted=[40])
    assert found == {"error": "wrote 0 tokens instead of 40"}


def test_a_side_may_write_as_many_tokens_for_each_audio_as_for_the_longest():
    ours = answer(tokens=[[1, 2], [3, 4, 5]])
    found = rounds.figures([answer(tokens=[[1, 2, 9], [3, 4, 5]])], ours, 10.0, wanted=[2, 3])
    # What a row wrote past our end is not compared.
    assert (found["tokens"], found["same_tokens"]) == (6, 1.0)
    assert rounds.wrong_counts([3, 2], [2, 3], [2, 3]) == "wrote 3, 2 tokens instead of 2, 3"


def test_where_texts_end_by_themselves_counts_may_differ_by_one():
    assert rounds.wrong_counts([41, 38], [40, 40], []) == "wrote 41, 38 tokens where canary-server writes 40, 40"
    assert rounds.wrong_counts([41, 39], [40, 40], []) is None
    assert rounds.wrong_counts([80], [40, 40], []) == "wrote 80 tokens where canary-server writes 40, 40"


def test_a_job_takes_seconds_by_the_clock_and_of_the_cpu():
    def run(job, stages):
        with stages("encode"):
            sum(range(10**6))
        return [[7]] * len(job.waveforms)

    done = worker.answer(run, worker.Job(["sound"]))
    assert done["tokens"] == [[7]]
    assert 0 < done["encode"] <= done["total"]
    assert done["cpu"] > 0


def test_a_failed_jobs_answer_is_its_error(capsys):
    def run(job, stages):
        raise MemoryError("too long")

    assert worker.answer(run, worker.Job([])) == {"error": "MemoryError: too long"}


def test_a_missing_openblas_is_an_error(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(blas, "OPENBLAS", "libopenblas-of-nobody.so.0")
    with pytest.raises(SystemExit, match=r"'openblas' cannot be loaded: .*libopenblas-of-nobody"):
        blas.use("openblas")


def test_a_blas_that_another_library_wins_over_is_an_error(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda *arguments, **options: None)
    monkeypatch.setattr(blas, "provider", lambda symbol: "/site-packages/torch/lib/libtorch_cpu.so")
    with pytest.raises(SystemExit, match=r"'openblas' was asked for, but sgemm_ comes from .*libtorch_cpu\.so"):
        blas.use("openblas")


CPUINFO = """processor	: 0
cpu family	: 26
model		: 2
model name	: AMD EPYC
flags		: fpu avx512f

processor	: 1
model name	: another
"""


def test_the_cpu_is_named_with_the_numbers_that_tell_its_model():
    assert machine.named_in(CPUINFO) == "AMD EPYC (family 26, model 2)"
    assert machine.named_in("processor\t: 0\nBogoMIPS\t: 48.00\n") == ""
    assert machine.cpu_name()


def test_the_table_has_each_sides_range_its_ratio_to_ours_cpu_seconds_and_the_cpu():
    ours = {"rtfx": [7.0, 8.0, 9.0], "cpu": [1.0, 1.25, 2.0]}
    slow = {"rtfx": [1.9, 2.0, 2.1], "cpu": [5.0, 5.0, 5.0]}
    results = [
        {"case": "10 s", "sides": {"ours": ours, "nemo": slow, "broken": {"error": "MemoryError: "}}},
        {"case": "8 of 10 s", "sides": {"ours": ours, "broken": slow}},
    ]
    measured = {"model": "tiny.nemo", "threads": 1, "machine": {"cpu": "Fast CPU"}, "results": results}
    assert summary.table(measured).splitlines() == [
        "tiny.nemo on Fast CPU, 1 thread. Times real time, min–median–max (ratio of the median to ours's), median CPU "
        "seconds:",
        "",
        "| | 10 s | 8 of 10 s |",
        "|---|---|---|",
        "| ours | 7.0–8.0–9.0, 1.25 s | 7.0–8.0–9.0, 1.25 s |",
        "| nemo | 1.9–2.0–2.1 (0.25), 5.00 s | one at a time |",
        "| broken | failed | 1.9–2.0–2.1 (0.25), 5.00 s |",
    ]


def test_the_details_name_what_went_wrong_with_a_side():
    ours = rounds.figures([answer(total=2.0)], answer(), 20.0, [])
    results = [{"case": "20 s", "sides": {"ours": ours, "nemo": {"error": "wrote 1 tokens instead of 2"}}}]
    assert summary.details(results).splitlines()[2:] == [
        "| 20 s | ours | 10.0–10.0–10.0 | 2.00–2.00–2.00 | 1.00–1.00–1.00 | 0.000 | 0.000 | 0.000 | 2 | 100 % | 1 |",
        "|  | nemo | wrote 1 tokens instead of 2 |  |  |  |  |  |  |  |  |",
    ]


def test_results_are_named_as_asked_be_there_a_dot_in_the_name(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "told", lambda found: "table")
    monkeypatch.setattr(peers, "plot", lambda found, path: path.write_text("plot"))
    peers.write({"results": []}, tmp_path / "results", "parakeet-0.6b")
    assert {path.name: path.read_text() for path in (tmp_path / "results").iterdir()} == {
        "parakeet-0.6b.json": '{\n "results": []\n}\n',
        "parakeet-0.6b.md": "table",
        "parakeet-0.6b.svg": "plot",
    }
