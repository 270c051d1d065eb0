"""An archive without a cluster: what is listed, what is kept, how machines are shared out. For the rest see
`process/test_cluster.py`."""

import json
import os
import threading
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from server.cli.cluster.attempts import Attempts, Turns
from server.cli.cluster.listing import Recording, find_recordings
from server.cli.cluster.results import PART_RECORDS, PART_S, Results
from server.cli.cluster.shares import Machine, Share
from server.errors import RequestError

MADE_WITH = {"model": "toy", "language": "en", "format": "json"}


@pytest.fixture(params=["folder", "memory"])
def output(request, tmp_path) -> str:
    """A local folder, and one in a storage without folders of its own."""
    return str(tmp_path / "results") if request.param == "folder" else f"memory://{uuid4().hex}/results"


def recording(name: str, version: str = "1") -> Recording:
    return Recording(f"/archive/{name}", 5, version)


def record(of: Recording, **values: object) -> dict:
    return {"file": of.path, "size": of.size, "version": of.version, **(values or {"text": "The man sleeps."})}


def written(output: str) -> list[dict]:
    """All records, in the order of the parts."""
    files, folder = fsspec.url_to_fs(output)
    parts = sorted(files.glob(f"{folder}/part-*.jsonl"))
    return [json.loads(line) for part in parts for line in files.cat_file(part).decode().strip().split("\n")]


def test_folders_patterns_and_files_are_listed_once_the_largest_first(tmp_path):
    for name, size in (("a.wav", 1), ("sub/b.FLAC", 3), ("sub/c.mp3", 2), ("notes.txt", 9)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    found, complaints = find_recordings([str(tmp_path), f"{tmp_path}/sub/*", f"file://{tmp_path}/notes.txt"])
    assert [each.path for each in found] == [
        str(tmp_path / name) for name in ("notes.txt", "sub/b.FLAC", "sub/c.mp3", "a.wav")
    ]
    assert [each.size for each in found] == [9, 3, 2, 1]
    assert complaints == []


def test_a_change_of_a_file_is_another_recording(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"1")
    [before], _ = find_recordings([str(path)])
    assert find_recordings([str(path)]) == ([before], [])
    path.write_bytes(b"2")
    os.utime(path, (1, 1))
    [after], _ = find_recordings([str(path)])
    assert (after.path, after.size) == (before.path, before.size)
    assert after != before


def test_object_storage_is_listed_by_url():
    files = fsspec.filesystem("memory")
    files.pipe({"/bucket/talks/a.flac": b"12", "/bucket/talks/readme.md": b"1"})
    [found], _ = find_recordings(["memory://bucket/talks"])
    assert (found.path, found.size) == ("memory:///bucket/talks/a.flac", 2)


def test_what_has_no_audio_is_named(tmp_path):
    found, [complaint] = find_recordings([str(tmp_path)])
    assert found == []
    assert complaint.startswith(f"{tmp_path}: no audio files; supported: .aac, ")
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        find_recordings([str(tmp_path / "gone")])


def test_a_name_that_is_not_utf_8_is_left_out_and_shown(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"1")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.wav")).write_bytes(b"1")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    [found], [complaint] = find_recordings([str(tmp_path)])
    assert found.path == str(tmp_path / "a.wav")
    assert "\\udce9.wav': the name is not UTF-8; rename the file" in complaint


@pytest.mark.parametrize(("url", "message"), [("nonsense://a", "Protocol not known"), ("s3://bucket/a", "s3fs")])
def test_a_storage_that_is_not_installed_is_named(url, message):
    with pytest.raises(RequestError, match=message):
        find_recordings([url])


def test_an_error_that_only_the_storage_knows_is_told_in_one_line(monkeypatch):
    class NoCredentials(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise NoCredentials("Unable to locate credentials")

    files = fsspec.filesystem("memory")
    monkeypatch.setattr(type(files), "isfile", fail)
    monkeypatch.setattr(type(files), "pipe_file", fail)
    with pytest.raises(RequestError, match="memory://talks: Unable to locate credentials"):
        find_recordings(["memory://talks"])
    with pytest.raises(RequestError, match="memory://texts: Unable to locate credentials"):
        Results("memory://texts", "json").begin(MADE_WITH, resume=False)


def test_a_part_is_written_whole_when_it_is_large_or_some_time_has_passed(output):
    now = 0.0
    results = Results(output, "json", now=lambda: now)
    results.begin(MADE_WITH, resume=False)
    first = [results.add(record(recording(f"{i}.wav"))) for i in range(PART_RECORDS)]
    assert first == [False] * (PART_RECORDS - 1) + [True]
    assert len(written(output)) == PART_RECORDS
    assert not results.add(record(recording("late.wav")))
    now = PART_S
    assert results.add(record(recording("later.wav")))
    assert [each["file"] for each in written(output)[PART_RECORDS:]] == ["/archive/late.wav", "/archive/later.wav"]
    results.write()
    assert len(written(output)) == PART_RECORDS + 2


def test_a_second_run_goes_on_and_repeats_what_failed_or_has_changed(output):
    done, failed, changed, other = (recording(f"{name}.wav") for name in ("done", "failed", "changed", "other"))
    first = Results(output, "json")
    first.begin(MADE_WITH, resume=False)
    first.add(record(done))
    # A line separator within a text does not end the line.
    first.add(record(changed, text="one\u2028two\u0085"))
    first.write()
    first.add(record(failed, error={"code": "invalid_audio", "message": "The file is empty (0 bytes)."}))
    first.add(record(other))
    first.write()
    second = Results(output, "json")
    second.begin(MADE_WITH, resume=True)
    new = recording("changed.wav", version="2")
    assert second.finished([done, failed, new, recording("added.wav")]) == {done}
    # What is not in this run stays as it is.
    assert written(output) == [record(done), record(other)]
    second.add(record(failed))
    second.add(record(new))
    second.write()
    third = Results(output, "json")
    assert third.finished([done, failed, new, other]) == {done, failed, new, other}
    assert sorted(each["file"] for each in written(output)) == sorted(each.path for each in (done, failed, new, other))


def test_a_record_that_two_runs_wrote_is_kept_once(output):
    one = recording("one.wav")
    for _ in range(2):
        results = Results(output, "json")
        results.begin(MADE_WITH, resume=True)
        results.add(record(one))
        results.write()
    assert len(written(output)) == 2
    assert Results(output, "json").finished([one]) == {one}
    assert written(output) == [record(one)]


def test_what_was_cut_off_in_the_middle_of_a_write_is_not_read(tmp_path):
    results = Results(str(tmp_path), "json")
    results.begin(MADE_WITH, resume=False)
    (tmp_path / "part-20260101-000000-00001.jsonl.part").write_text('{"file": "/arch')
    assert results.finished([recording("a.wav")]) == set()
    results.begin(MADE_WITH, resume=True)


def test_results_are_not_mixed_with_those_of_other_options(output):
    first = Results(output, "json")
    first.begin(MADE_WITH, resume=False)
    # Nothing is there yet that could be mixed.
    first.begin(MADE_WITH | {"language": "de"}, resume=False)
    first.add(record(recording("a.wav")))
    first.write()
    with pytest.raises(RequestError, match="holds results; add --resume to go on with them, or choose another folder"):
        first.begin(MADE_WITH, resume=False)
    with pytest.raises(RequestError, match="was made with language 'de', not 'en'; choose another folder"):
        first.begin(MADE_WITH, resume=True)
    first.begin(MADE_WITH | {"language": "de"}, resume=True)


ONE_MAC, TEN_BOXES = [Machine(8, 0)], [Machine(0, 0), *[Machine(16, 0)] * 10]


@pytest.mark.parametrize(
    ("machines", "workers", "share", "room"),
    [
        (ONE_MAC, None, Share(8, 0), 1),
        (ONE_MAC, 2, Share(4, 0), 2),
        (ONE_MAC, 3, Share(2, 0), 4),
        (TEN_BOXES, None, Share(16, 0), 10),
        (TEN_BOXES, 10, Share(16, 0), 10),
        (TEN_BOXES, 11, Share(8, 0), 20),
        ([Machine(4, 0), Machine(12, 0)], None, Share(4, 0), 4),
        ([Machine(8, 0), Machine(32, 4), Machine(16, 1)], None, Share(8, 1), 5),
        ([Machine(2, 4)], None, Share(1, 1), 2),
    ],
)
def test_each_worker_gets_a_gpu_or_as_much_of_a_machine_as_leaves_room_for_all(machines, workers, share, room):
    assert Share.of(machines, workers) == share
    assert share.room(machines) == room


def test_more_workers_than_there_is_room_for_are_refused():
    with pytest.raises(RequestError, match="the cluster has no room for 9 workers; there is room for 8"):
        Share.of(ONE_MAC, 9)
    with pytest.raises(RequestError, match="no room for 1 workers; there is room for 0"):
        Share.of([Machine(0, 0)], None)


def test_a_recording_that_is_tried_again_has_its_worker_for_itself():
    turns, log, others_run = Turns(), [], threading.Barrier(3)

    def work(name: str, alone: bool) -> None:
        with turns.turn(alone):
            if not alone:
                # Both of the others are in their turn, or this would not end.
                others_run.wait(10)
            log.append(name)

    together = [threading.Thread(target=work, args=(name, False)) for name in ("a", "b")]
    for thread in together:
        thread.start()
    alone = threading.Thread(target=work, args=("alone", True))
    alone.start()
    others_run.wait(10)
    for thread in (*together, alone):
        thread.join(10)
    assert sorted(log) == ["a", "alone", "b"]
    with turns.turn(alone=True):
        beside = threading.Thread(target=work, args=("after", True))
        beside.start()
        beside.join(0.05)
        assert log[3:] == []
    beside.join(10)
    assert log[3:] == ["after"]


def test_attempts_count_what_was_begun_and_not_finished():
    attempts = Attempts()
    attempts.begin("a.wav")
    attempts.begin("a.wav")
    attempts.begin("b.wav")
    attempts.end("b.wav")
    assert [attempts.count(path) for path in ("a.wav", "b.wav", "c.wav")] == [2, 0, 0]
