"""What the documents show, done: each curl line and Python snippet against a server with the toy model."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CURL = shutil.which("curl") or "curl"
DOCUMENTS = ["README.md", "server/web/routes/README.md"]


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def curl_lines() -> list[str]:
    return [line for each in DOCUMENTS for line in re.findall(r"^curl .*convert/toy/samples.*$", read(each), re.M)]


def snippets() -> list[str]:
    return [block for each in DOCUMENTS for block in re.findall(r"^```python\n(.*?)^```", read(each), re.M | re.S)]


@pytest.mark.parametrize("line", curl_lines())
def test_each_curl_line_gives_the_text(toy, samples, line):
    words = [word.replace("localhost:8000", str(toy.base_url)) for word in shlex.split(line)[1:]]
    run = subprocess.run([CURL, "-sS", "--noproxy", "*", *words], capture_output=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr
    answer = run.stdout.decode()
    language = re.search(r"samples/(\w+)\.", line)
    assert language
    sample = samples[language[1]]
    target = re.search(r"target_language=(\w+)", line)
    text = sample.translations[target[1]] if target else sample.text
    if "format=srt" in line:
        cues = [cue.split("\n", 2)[2].strip() for cue in answer.strip().split("\n\n")]
        assert " ".join(cues).split() == text.split()
    else:
        assert (answer if "format=text" in line else json.loads(answer)["text"]).strip() == text


@pytest.mark.parametrize("snippet", snippets(), ids=lambda snippet: snippet.split("import ")[1].split()[0])
def test_each_python_snippet_prints_what_is_said(toy, samples, snippet, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    code = snippet.replace("talk.wav", str(samples["en"].path)).replace("canary-180m-flash", "toy")
    exec(compile(code.replace("127.0.0.1:8000", toy.base_url.netloc.decode()), "snippet", "exec"), {})
    printed = capsys.readouterr().out
    assert all(word in printed for word in samples["en"].text.split())


def test_the_example_of_an_answer_is_one(toy, samples):
    found = re.search(r"^```json\n(.*?)^```", read("server/web/routes/README.md"), re.M | re.S)
    assert found
    example = json.loads(found[1])
    query = {"language": "es", "timestamps": "word"}
    answer = toy.post("/transcribe", params=query, content=samples["es"].audio).json()
    assert {**answer, **example, "segments": [], "timing": {}} == {**answer, "segments": [], "timing": {}}
    assert example["timing"].keys() <= answer["timing"].keys()
    shown, segment = example["segments"][0], answer["segments"][0]
    assert shown.keys() == segment.keys()
    assert (shown["text"], shown["words"]) == (segment["text"], segment["words"][:1])
