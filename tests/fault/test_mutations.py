"""Each defence can still be taken out and its test exists; a test that does not notice is reported."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fault.defences import DEFENCES, Defence
from tests.fault.mutations import ROOT, scratch_copy, verdict_without, without

ALL = [defence for defences in DEFENCES.values() for defence in defences]


@pytest.mark.parametrize("defence", ALL, ids=lambda defence: defence.what)
def test_each_defence_can_be_taken_out_and_its_test_is_there(defence: Defence):
    text = without(defence)
    assert text != (ROOT / defence.file).read_text(encoding="utf-8")
    if defence.file.endswith(".py"):
        ast.parse(text)
    path, _, name = defence.test.partition("::")
    source = (ROOT / "tests" / path).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE)


def test_a_defence_whose_code_has_changed_is_named():
    changed = replace(ALL[0], edits=(("is in no file", ""),))
    with pytest.raises(ValueError, match=f"0 times; {ALL[0].what!r} cannot be taken out"):
        without(changed)


@pytest.fixture(scope="module")
def copy() -> Iterator[Path]:
    with scratch_copy() as copy:
        yield copy


LOOPS = Defence(
    "",
    "server/longform/pieces.py",
    "unit/test_loops.py",
    (("return bool(_WITHIN_WORD.search(text)) or any(", "return all("),),
)


@pytest.mark.parametrize(
    ("defence", "result"),
    [
        (LOOPS, "fails"),
        (replace(LOOPS, test="unit/test_tasks.py"), "passes"),
        (replace(LOOPS, edits=(("def is_loop", "def was_loop"),)), "error"),
    ],
    ids=["noticed", "not noticed", "broken"],
)
def test_taking_a_defence_out_tells_whether_its_test_notices(copy, defence, result):
    before = (copy / defence.file).read_bytes()
    assert verdict_without(defence, copy) == result
    assert (copy / defence.file).read_bytes() == before
