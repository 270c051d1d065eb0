"""`canary evaluate`: manifests, parts of files, the file of predictions, and the command."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from server.__main__ import main
from server.cli.evaluate.audio import beginning
from server.cli.evaluate.comparing import compared
from server.cli.evaluate.hub_datasets import Address
from server.cli.evaluate.manifests import ManifestError, read_manifest, read_utterances
from server.cli.evaluate.predictions import Prediction, PredictionFile, finished, read_predictions
from server.cli.evaluate.transcribing import TimeShares
from tests.transcripts import prediction


def manifest(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# ---- manifests ----


def test_a_manifest_is_read_as_nemo_writes_it(tmp_path):
    path = manifest(
        tmp_path,
        {"audio_filepath": "a.wav", "duration": 2.5, "text": "Hello.", "source_lang": "en", "target_lang": "en"},
        {"audio_filepath": "/b.wav", "text": "Hallo.", "lang": "de-DE", "taskname": "asr", "pnc": "no", "offset": 1.5},
        {"audio_filepath": "a.wav", "text": "Hallo.", "source_lang": "en", "target_lang": "de", "taskname": "ast"},
    )
    first, second, third = read_manifest(path)
    assert (first.path, first.duration_s, first.language, first.pnc) == (tmp_path / "a.wav", 2.5, "en", None)
    assert (first.translation_target, first.offset_s) == ("", None)
    assert (second.path, second.language, second.pnc, second.offset_s) == (Path("/b.wav"), "de", False, 1.5)
    assert (third.language, third.translation_target) == ("en", "de")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2: not JSON: 'not json'"),
        ("[1]", "line 2: must be an object with audio_filepath and text"),
        ('{"text": "a"}', "line 2: audio_filepath is required"),
        ('{"audio_filepath": "b.wav"}', "line 2: text is required: it is the reference to compare with"),
        ('{"audio_filepath": "b.wav", "text": "a", "offset": -1}', "line 2: offset: '-1' is not valid"),
        (
            '{"audio_filepath": "b.wav", "text": "a", "lang": "klingon"}',
            "line 2: source_lang: 'klingon' is not supported",
        ),
        ('{"audio_filepath": "b.wav", "text": "a", "pnc": "maybe"}', "line 2: pnc: 'maybe' is not valid"),
        ('{"audio_filepath": "b.wav", "text": "a", "taskname": "sing"}', "line 2: taskname: 'sing' is not valid"),
        ('{"audio_filepath": "b.wav", "text": "a", "taskname": "ast"}', "line 2: taskname ast needs a target_lang"),
        ('{"audio_filepath": "a.wav", "text": "again"}', "line 2: a.wav is on line 1 already"),
    ],
)
def test_a_line_that_cannot_be_evaluated_is_named_with_what_is_wrong(tmp_path, line, message):
    path = tmp_path / "test.jsonl"
    path.write_text('{"audio_filepath": "a.wav", "text": "Hello."}\n' + line + "\n")
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    assert str(error.value).startswith(f"{path}, {message}")


def test_a_folder_has_a_text_beside_each_audio_file_and_those_without_one_are_told(tmp_path):
    for name in ("a.wav", "deep/b.mp3", "c.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("Two\nlines.\n", encoding="utf-8")
    (tmp_path / "deep/b.txt").write_text("", encoding="utf-8")
    utterances, without_text = read_utterances(tmp_path)
    assert [(each.path.name, each.text) for each in utterances] == [("a.wav", "Two lines."), ("b.mp3", "")]
    assert without_text == [tmp_path / "c.flac"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"no audio file with a \.txt of the same name beside it"):
        read_utterances(tmp_path / "empty")


def test_the_page_writes_a_manifest_of_librispeech(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "server" / "cli" / "evaluate" / "README.md"
    (script,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    chapter = Path("LibriSpeech/test-clean/1089/134686")
    chapter.mkdir(parents=True)
    (chapter / "1089-134686.trans.txt").write_text("1089-134686-0000 HE HOPED\n1089-134686-0001 STUFF IT\n")
    exec(script, {})
    first, second = read_manifest(tmp_path / "test-clean.jsonl")
    assert (first.path, first.text) == (tmp_path / chapter / "1089-134686-0000.flac", "HE HOPED")
    assert (second.text, second.language, second.pnc) == ("STUFF IT", "en", False)


# ---- addresses of datasets ----


def test_an_address_names_a_dataset_of_the_hub_or_a_folder(tmp_path, monkeypatch):
    plain = Address.parse("hf:google/fleurs")
    assert (plain.dataset, plain.is_folder, plain.revision, plain.config, plain.split) == (
        *("google/fleurs", False, None, None),
        "test",
    )
    whole = Address.parse("hf:a/b@refs/pr/1?config=de_de&split=dev&text=raw%20text&audio=sound")
    assert (whole.dataset, whole.revision, whole.config) == ("a/b", "refs/pr/1", "de_de")
    assert (whole.split, whole.text, whole.audio) == ("dev", "raw text", "sound")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    # As with --model, what is on this machine comes first.
    assert Address.parse("hf:a/b?split=dev").dataset == str((tmp_path / "a" / "b").resolve())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf:", "must be hf:OWNER/NAME[@REVISION] or hf:FOLDER"),
        ("hf:fleurs", "must be hf:OWNER/NAME[@REVISION] or hf:FOLDER"),
        ("hf:./gone", "no such folder: ./gone"),
        ("hf:a/b?de_de", "'de_de' must have the form NAME=VALUE&NAME=VALUE"),
        ("hf:a/b?lang=de", "unknown option 'lang'; supported: config, split, text, audio"),
        ("hf:a/b?split=dev&split=test", "split is given twice"),
        ("hf:a/b?text=", "text is empty"),
    ],
)
def test_an_address_that_is_none_is_an_error_that_says_why(address, message):
    with pytest.raises(ManifestError) as error:
        Address.parse(address)
    assert str(error.value).startswith(f"{address}: {message}")


# ---- audio ----


def test_a_warm_up_takes_only_the_beginning():
    blocks = iter([np.zeros(16000, np.float32)] * 5)
    assert sum(map(len, beginning(blocks, 2.5))) == 40000
    assert len(list(blocks)) == 2


# ---- the file of predictions ----


def test_nemos_output_is_matched_by_path_or_by_file_name(tmp_path):
    ours = manifest(
        tmp_path,
        {"audio_filepath": "a.wav", "text": "one", "pred_text": "won"},
        {"audio_filepath": "b.wav", "text": "two", "pred_text": "two"},
    )
    (tmp_path / "nemo").mkdir()
    theirs = manifest(
        tmp_path / "nemo",
        {"audio_filepath": "/data/a.wav", "duration": 1.0, "text": "one", "pred_text": " won"},
        {"audio_filepath": "/data/c.wav", "duration": 1.0, "text": "three", "pred_text": "three"},
    )
    found = compared(read_predictions(ours), read_predictions(theirs), theirs)
    # NeMo's texts begin with a space.
    assert (found.utterances, found.missing, found.same_text) == (1, 1, 1)
    assert (found.differences[0].here, found.differences[0].there) == (100.0, 100.0)
    strangers = [prediction("x", "x", "elsewhere.wav")]
    with pytest.raises(ManifestError, match="has none of these utterances"):
        compared(read_predictions(ours), strangers, Path("other.jsonl"))


def test_an_interrupted_file_is_resumed_without_its_cut_off_line_and_without_failures(tmp_path):
    path = manifest(tmp_path, *({"audio_filepath": f"{name}.wav", "text": name} for name in "abc"))
    utterances = read_manifest(path)
    output = tmp_path / "out" / "pred.jsonl"
    file = PredictionFile(output, [])
    file.add(Prediction(utterances[0], "A", "en", 1.0, 0.5, system="toy"))
    file.add(Prediction(utterances[1], "", "en", 1.0, 0.5, "No such file", "toy"))
    file.close()
    with output.open("a") as cut:
        cut.write('{"audio_filepath": "c.wav", "te')
    done = finished(output, utterances, "toy")
    assert [(each.utterance.name, each.text, each.time_s) for each in done] == [("a.wav", "A", 0.5)]
    with pytest.raises(ManifestError, match=r"line 1: written by toy, but this is other; choose another --output"):
        finished(output, utterances, "other")
    file = PredictionFile(output, done)
    file.add(Prediction(utterances[2], "C", "en", system="toy"))
    file.finish([*done, Prediction(utterances[2], "C", "en", system="toy")])
    file.close()
    assert [each.text for each in read_predictions(output)] == ["A", "C"]


def test_a_translation_that_the_command_line_asked_for_is_found_again(tmp_path):
    (utterance,) = read_manifest(manifest(tmp_path, {"audio_filepath": "a.wav", "text": "Hallo."}))
    asked = replace(utterance, language="en", target_language="de")
    output = tmp_path / "pred.jsonl"
    PredictionFile(output, [Prediction(asked, "Hallo.", "en", system="toy")]).close()
    assert [each.utterance for each in finished(output, [asked], "toy")] == [asked]


def test_shares_of_the_time_add_up_to_it():
    clock = iter([0.0, 2.0, 6.0, 9.0, 100.0, 101.0])
    shares = TimeShares(lambda: next(clock))
    shares.start(1)
    shares.start(2)
    assert shares.finish(1) == 2.0 + 2.0
    assert shares.finish(2) == 2.0 + 3.0
    # Nothing ran from 9 to 100.
    shares.start(3)
    assert shares.finish(3) == 1.0


# ---- the command ----


def run(*arguments: object):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


@pytest.fixture
def scored_file(tmp_path, monkeypatch) -> Path:
    """Ten words, one of them wrong."""
    monkeypatch.chdir(tmp_path)
    text = "one two three four five six seven eight nine ten"
    return manifest(
        tmp_path,
        {"audio_filepath": "a.wav", "text": text, "lang": "de", "pred_text": text.replace("ten", "tin"), "time": 0.5},
    )


@pytest.mark.parametrize(("most", "code"), [(10, 0), (9.9, 1)])
def test_a_word_error_rate_over_the_limit_is_exit_code_1(scored_file, most, code):
    result = run(scored_file, "--score-only", "--max-wer", most)
    assert result.exit_code == code
    complaint = "canary: the word error rate is 10.00 %, above --max-wer 9.9\n"
    assert result.stderr == (complaint if code else "")


def test_the_json_has_the_figures_and_the_screen_goes_to_stderr(scored_file):
    result = run(scored_file, "--score-only", "--json", "--against", scored_file)
    found = json.loads(result.stdout)
    assert found["transcription"]["all"]["wer_percent"] == 10.0
    assert found["transcription"]["de"]["wer_counts"] == {
        "length": 10,
        "substitutions": 1,
        "deletions": 0,
        "insertions": 0,
    }
    assert set(found["libraries"]) == {"jiwer", "whisper-normalizer", "sacrebleu"}
    assert found["against"]["differences"][0]["verdict"] == "same"
    assert "There is no difference." in result.stderr


def test_without_the_extra_one_line_names_it(scored_file, monkeypatch):
    monkeypatch.setattr("server.cli.evaluate.command.find_spec", lambda name: None if name == "sacrebleu" else 1)
    result = run(scored_file, "--score-only")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "canary: evaluate needs sacrebleu: install the extra [evaluate], or run: pip install sacrebleu\n"
    )


def test_without_the_library_for_datasets_one_line_names_its_extra(scored_file, monkeypatch):
    monkeypatch.setattr("server.cli.evaluate.command.find_spec", lambda name: None if name == "datasets" else 1)
    result = run("hf:google/fleurs")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "canary: hf: needs the library datasets: install the extra [datasets], or run: pip install datasets\n"
    )


def test_only_the_first_utterances_are_taken_if_there_is_a_limit(scored_file):
    line = json.loads(scored_file.read_text()) | {"audio_filepath": "b.wav"}
    with scored_file.open("a") as file:
        file.write(json.dumps(line) + "\n")
    for limit, utterances in ((1, 1), (2, 2), (3, 2)):
        result = run(scored_file, "--score-only", "--json", "--limit", limit)
        assert json.loads(result.stdout)["utterances"] == utterances


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.jsonl", "--score-only"), "gone.jsonl"),
        (("hf:a/b", "--score-only"), "--score-only: needs a file with pred_text, not a dataset"),
        (("test.jsonl", "--resume"), "--resume: needs --output"),
        (("test.jsonl", "--score-only", "--output", "x"), "--score-only: cannot be combined with --output"),
        (("test.jsonl", "--output", "test.jsonl"), "--output: test.jsonl exists; add --resume"),
        (("test.jsonl", "--score-only", "--against", "gone.jsonl"), "gone.jsonl"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_model_is_loaded(scored_file, monkeypatch, arguments, message):
    monkeypatch.setattr("server.cli.recordings.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.replace("│", " ").split())
