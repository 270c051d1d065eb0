"""A value of the wrong type in a configuration is an error of one line that names it, wherever it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from convert.convert import ConversionConfig, convert
from convert.errors import ArchiveError
from model.config import AlignerConfig, ConfigError, section_from
from model.loading import load
from tests import archives

NOT_SECTIONS = ["x", 5, 2.5, True, ["a"]]
NEMO = {
    "180m-flash": ("preprocessor", "encoder", "transf_encoder", "transf_decoder", "head", "tokenizer", "decoding"),
    "1b-v2": ("preprocessor", "encoder", "decoder", "tokenizer"),
}
MEMBERS = {"180m-flash": "model_config.yaml", "1b-v2": "timestamps_asr_model_config.yaml"}
OURS = ("preprocessor", "encoder", "decoder", "decoding", "tokenizer")


@pytest.fixture(scope="module")
def archive_files() -> dict[str, dict[str, bytes]]:
    return {variant: archives.members(variant) for variant in NEMO}


@pytest.mark.parametrize("value", NOT_SECTIONS, ids=str)
@pytest.mark.parametrize(
    ("variant", "section"), [(variant, section) for variant, sections in NEMO.items() for section in sections]
)
def test_a_section_of_nemos_configuration_that_is_something_else_is_named(
    tmp_path, archive_files, variant, section, value
):
    files, member = archive_files[variant], MEMBERS[variant]
    changed = yaml.safe_dump({**yaml.safe_load(files[member]), section: value}).encode()
    archive = archives.write_archive(tmp_path / "m.nemo", {**files, member: changed})
    with pytest.raises(ArchiveError) as error:
        convert(ConversionConfig(source=archive, output=tmp_path / "out"), tmp_path)
    assert str(error.value) == f"{archive}: {member}: {section}: {str(value)!r} is not a section"


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    return convert(ConversionConfig(source=archives.tiny_archive(folder, "1b-v2"), output=folder / "out"), folder)


def load_with(converted: Path, folder: Path, change: dict[str, Any]) -> None:
    """Load a copy of a converted model in whose configuration `change` was made by hand."""
    copy = shutil.copytree(converted, folder / "copy")
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (copy / "digests.json").unlink()
    load(copy, "float32")


@pytest.mark.parametrize("value", NOT_SECTIONS, ids=str)
@pytest.mark.parametrize("section", OURS)
def test_a_section_of_a_converted_configuration_that_is_something_else_is_named(converted, tmp_path, section, value):
    with pytest.raises(ConfigError) as error:
        load_with(converted, tmp_path, {section: value})
    assert str(error.value) == f"{section}: {value!r} is not a section"


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("preprocessor", "sample_rate", "x", "'x' is not supported; must be a whole number"),
        ("preprocessor", "window_size", [1], "(1,) is not supported; must be a number"),
        ("preprocessor", "window_stride", None, "None is not supported; must be a number"),
        ("encoder", "n_layers", 2.5, "2.5 is not supported; must be a whole number"),
        ("encoder", "d_model", True, "True is not supported; must be a whole number"),
        ("encoder", "xscaling", "no", "'no' is not supported; must be true or false"),
        ("decoder", "hidden_size", {"a": 1}, "{'a': 1} is not supported; must be a whole number"),
        ("decoding", "length_penalty", "1", "'1' is not supported; must be a number"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_the_type_that_it_must_have(
    converted, tmp_path, section, key, value, told
):
    values = json.loads((converted / "config.json").read_text())[section]
    with pytest.raises(ConfigError) as error:
        load_with(converted, tmp_path, {section: {**values, key: value}})
    assert str(error.value) == f"{section}.{key}: {told}"


def test_a_whole_number_may_stand_for_any_number(converted):
    values = json.loads((converted / "aligner" / "config.json").read_text())
    values["preprocessor"]["window_size"] = 1
    assert section_from(AlignerConfig, values).preprocessor.window_size == 1
