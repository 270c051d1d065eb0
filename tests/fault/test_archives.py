"""Damaged, incomplete and malicious archives: each is a clear one-line error and leaves nothing behind."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from convert.convert import ConversionConfig, convert
from convert.errors import ConversionError
from tests import archives

VARIANT = "180m-flash"
CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return archives.members(VARIANT)


@pytest.fixture
def refusal(tmp_path):
    """Try to convert an archive and return the error, which must be one line. Nothing may be left behind."""

    def convert_and_fail(archive: Path) -> str:
        target = tmp_path / "models"
        target.mkdir()
        with pytest.raises(ConversionError) as error:
            convert(ConversionConfig(source=archive, output=target / "out"))
        assert list(target.iterdir()) == []
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400 + len(str(tmp_path))
        return str(error.value)

    return convert_and_fail


def with_member(path: Path, files: dict[str, bytes], name: str, content: bytes = b"", **header) -> Path:
    """The archive with one more, malicious member."""
    archives.write_archive(path, files)
    with tarfile.open(path, "a:") as archive:
        archives.add(archive, name, content, **header)
    return path


def repacked(checkpoint: bytes, replaced: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch checkpoint with some of its records replaced."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as old, zipfile.ZipFile(output, "w", compression) as new:
        for record in old.infolist():
            name = record.filename.partition("/")[2]
            new.writestr(record.filename, replaced.get(name, old.read(record)))
    return output.getvalue()


# ---- the archive ----


def test_a_web_page_saved_as_an_archive_is_rejected(tmp_path, refusal):
    path = tmp_path / "page.nemo"
    path.write_text("<html>Please log in to download this model.</html>\n" * 40)
    assert "page.nemo is not a .nemo archive (tar), or is damaged" in refusal(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", b"\x1f\x8b\x08" + bytes(600), gzip.compress(b"words"), bytes(2048)]
)
def test_a_file_that_only_begins_like_an_archive_is_rejected(tmp_path, refusal, content):
    path = tmp_path / "model.nemo"
    path.write_bytes(content)
    assert "is not a .nemo archive (tar), or is damaged" in refusal(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path, refusal):
    assert refusal(tmp_path / "absent.nemo").endswith("absent.nemo: no such file")


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("gzipped", [False, True])
def test_a_truncated_archive_is_rejected(tmp_path, files, refusal, part, gzipped):
    path = archives.write_archive(tmp_path / "model.nemo", files, gzipped=gzipped)
    os.truncate(path, int(path.stat().st_size * part))
    assert "model.nemo" in refusal(path)


def test_the_error_for_a_truncated_archive_names_the_member_it_ends_in(tmp_path, files, refusal):
    path = archives.write_archive(tmp_path / "model.nemo", files)
    os.truncate(path, path.stat().st_size - 100_000)
    assert "the archive ends in the middle of './model_weights.ckpt'; download it again" in refusal(path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, f"{archives.md5('fr')}_tokenizer.model"])
def test_a_missing_member_is_an_error_that_names_it(tmp_path, files, refusal, name):
    path = archives.write_archive(tmp_path / "model.nemo", {key: files[key] for key in files if key != name})
    assert refusal(path).endswith(f"{name} is missing")


def test_a_member_is_not_mistaken_for_one_whose_name_ends_the_same(tmp_path, files, refusal):
    renamed = {f"timestamps_{name}" if name == CONFIG else name: files[name] for name in files}
    assert refusal(archives.write_archive(tmp_path / "model.nemo", renamed)).endswith("model_config.yaml is missing")


@pytest.mark.parametrize("name", ["../evil", "./../evil", "a/../../evil", "/tmp/evil", "./a/.."])
def test_a_member_that_points_outside_the_archive_is_rejected(tmp_path, files, refusal, name):
    message = refusal(with_member(tmp_path / "model.nemo", files, name, b"x"))
    assert message.endswith(f"member {name!r} points outside the archive")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_is_rejected(tmp_path, files, refusal, kind):
    path = with_member(tmp_path / "model.nemo", files, "./extra", type=kind, linkname="/etc/passwd")
    assert refusal(path).endswith("member './extra' is a link or a special file")


def test_a_link_in_place_of_the_configuration_is_not_followed(tmp_path, files, refusal):
    others = {name: files[name] for name in files if name != CONFIG}
    path = with_member(tmp_path / "model.nemo", others, CONFIG, type=tarfile.LNKTYPE, linkname=f"./{WEIGHTS}")
    assert refusal(path).endswith(f"member '{CONFIG}' is a link or a special file")


def test_a_duplicate_name_is_rejected_even_if_it_is_spelled_differently(tmp_path, files, refusal):
    path = with_member(tmp_path / "model.nemo", files, f".//{CONFIG}", files[CONFIG])
    assert refusal(path).endswith(f"member '{CONFIG}' appears twice")


def test_too_many_members_are_rejected(tmp_path, refusal, monkeypatch):
    monkeypatch.setattr("convert.nemo.MAX_MEMBERS", 20)
    path = archives.write_archive(tmp_path / "model.nemo", {f"file{n}": b"" for n in range(21)})
    assert refusal(path).endswith("the archive has over 20 members")


def test_unzipping_a_gzip_bomb_stops_at_the_limit(tmp_path, refusal, monkeypatch):
    monkeypatch.setattr("convert.nemo.MAX_UNZIPPED_BYTES", 2**20)
    path = archives.write_archive(tmp_path / "model.nemo", {"zeros": bytes(2**24)}, gzipped=True)
    assert refusal(path).endswith("model.nemo unzips to over 1048576 bytes")


# ---- the configuration and the tokenizers ----


def refused_with(name: str, content: bytes, tmp_path, files, refusal) -> str:
    return refusal(archives.write_archive(tmp_path / "model.nemo", {**files, name: content}))


def test_a_yaml_tag_that_would_construct_an_object_is_rejected_and_runs_nothing(tmp_path, files, refusal):
    evidence = tmp_path / "ran"
    content = f"target: !!python/object/apply:os.mkdir [{evidence}]\n".encode()
    assert "model_config.yaml is not plain YAML" in refused_with(CONFIG, content, tmp_path, files, refusal)
    assert not evidence.exists()


def test_targets_in_the_configuration_are_never_called(tmp_path, files):
    config = yaml.safe_load(files[CONFIG])
    config["encoder"]["_target_"] = "os.abort"
    config["tokenizer"]["custom_tokenizer"] = {"_target_": "os.abort"}
    archive = archives.write_archive(tmp_path / "m.nemo", {**files, CONFIG: yaml.safe_dump(config).encode()})
    assert convert(ConversionConfig(source=archive, output=tmp_path / "out")).is_dir()


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00", b"- 1\n- 2\n", b"", b"[" * 5000])
def test_a_configuration_that_is_not_a_yaml_mapping_is_rejected(tmp_path, files, refusal, content):
    assert CONFIG in refused_with(CONFIG, content, tmp_path, files, refusal)


def test_a_huge_configuration_is_not_parsed(tmp_path, files, refusal):
    message = refused_with(CONFIG, b"#" * (10 * 2**20 + 1), tmp_path, files, refusal)
    assert message.endswith("model_config.yaml has 10485761 bytes; the limit is 10485760")


def test_yaml_aliases_that_expand_without_bound_are_rejected(tmp_path, files, refusal):
    laughs = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    message = refused_with(CONFIG, "\n".join(laughs).encode(), tmp_path, files, refusal)
    assert message.endswith("model_config.yaml has over 1000000 values after its aliases are expanded")


def test_a_tokenizer_that_is_not_sentencepiece_is_rejected(tmp_path, files, refusal):
    name = f"{archives.md5('en')}_tokenizer.model"
    message = refused_with(name, b"not a model", tmp_path, files, refusal)
    assert "tokenizer.en.model is not a SentencePiece model" in message


def test_a_tokenizer_with_a_piece_that_is_not_utf8_is_rejected(tmp_path, files, refusal):
    name = f"{archives.md5('en')}_tokenizer.model"
    # Field 1 of the last piece, of one letter.
    at = files[name].rindex(b"\x0a\x01") + 2
    message = refused_with(name, files[name][:at] + b"\xbc" + files[name][at + 1 :], tmp_path, files, refusal)
    assert "tokenizer.en.model is not a SentencePiece model" in message


@pytest.mark.parametrize("language", ["../en", "EN", "a" * 21])
def test_a_language_that_is_not_safe_as_a_file_name_is_rejected(tmp_path, files, refusal, language):
    config = yaml.safe_load(files[CONFIG])
    config["tokenizer"]["langs"][language] = config["tokenizer"]["langs"].pop("en")
    message = refused_with(CONFIG, yaml.safe_dump(config).encode(), tmp_path, files, refusal)
    assert f"tokenizer of {language!r}" in message


# ---- the checkpoint ----


def test_an_unexpected_tensor_is_an_error_that_names_it(tmp_path, files, refusal):
    content = archives.checkpoint({**archives.tensors(VARIANT), "transf_decoder.extra": torch.zeros(3)})
    message = refused_with(WEIGHTS, content, tmp_path, files, refusal)
    assert message == "unexpected tensor transf_decoder.extra (3,)"


def test_a_missing_tensor_is_an_error_that_names_it(tmp_path, files, refusal):
    tensors = archives.tensors(VARIANT)
    del tensors["encoder_decoder_proj.bias"]
    message = refused_with(WEIGHTS, archives.checkpoint(tensors), tmp_path, files, refusal)
    assert message == "missing tensor encoder_decoder_proj.bias (48,)"


def test_a_tensor_of_the_wrong_shape_is_an_error_with_both_shapes(tmp_path, files, refusal):
    tensors = {**archives.tensors(VARIANT), "encoder_decoder_proj.weight": torch.zeros(32, 48)}
    message = refused_with(WEIGHTS, archives.checkpoint(tensors), tmp_path, files, refusal)
    assert message == "encoder_decoder_proj.weight has shape (32, 48), expected (48, 32)"


class RunsCode:
    """Creates the folder `evidence` when it is unpickled."""

    def __init__(self, evidence: Path):
        self.evidence = evidence

    def __reduce__(self):
        return os.mkdir, (str(self.evidence),)


def test_a_pickle_that_would_run_code_is_rejected_and_runs_nothing(tmp_path, files, refusal):
    evidence = tmp_path / "ran"
    content = archives.checkpoint({**archives.tensors(VARIANT), "extra": RunsCode(evidence)})
    message = refused_with(WEIGHTS, content, tmp_path, files, refusal)
    assert message.endswith("model_weights.ckpt contains objects other than tensors")
    assert not evidence.exists()


def test_a_bare_pickle_is_rejected_and_runs_nothing(tmp_path, files, refusal):
    evidence = tmp_path / "ran"
    message = refused_with(WEIGHTS, pickle.dumps(RunsCode(evidence)), tmp_path, files, refusal)
    assert "model_weights.ckpt is not a torch checkpoint, or is damaged" in message
    assert not evidence.exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {"a": 1}, {1: torch.zeros(2)}, torch.zeros(2)])
def test_a_checkpoint_that_is_not_a_dictionary_of_tensors_is_rejected(tmp_path, files, refusal, content):
    message = refused_with(WEIGHTS, archives.checkpoint(content), tmp_path, files, refusal)
    assert "is not a tensor" in message or "not a dictionary of tensors" in message


def test_a_flipped_bit_in_the_weights_is_detected(tmp_path, files, refusal):
    content = bytearray(files[WEIGHTS])
    content[len(content) // 2] ^= 1
    message = refused_with(WEIGHTS, bytes(content), tmp_path, files, refusal)
    assert "model_weights.ckpt is damaged at" in message


def test_a_truncated_checkpoint_in_a_complete_archive_is_rejected(tmp_path, files, refusal):
    message = refused_with(WEIGHTS, files[WEIGHTS][:-5000], tmp_path, files, refusal)
    assert "model_weights.ckpt is not a torch checkpoint, or is damaged" in message


def test_a_damaged_index_is_rejected(tmp_path, files, refusal):
    content = repacked(files[WEIGHTS], {"data.pkl": b"\x80\x02}q\x00(X\x01"})
    message = refused_with(WEIGHTS, content, tmp_path, files, refusal)
    assert "model_weights.ckpt has an index that cannot be read: " in message


def test_compressed_records_are_rejected_before_they_are_read(tmp_path, files, refusal):
    content = repacked(files[WEIGHTS], {}, zipfile.ZIP_DEFLATED)
    message = refused_with(WEIGHTS, content, tmp_path, files, refusal)
    assert message.endswith("model_weights.ckpt has compressed records, which torch never writes")


def test_a_tensor_larger_than_its_record_is_rejected(tmp_path, files, refusal):
    content = repacked(files[WEIGHTS], {"data/0": bytes(4)})
    message = refused_with(WEIGHTS, content, tmp_path, files, refusal)
    assert message.endswith("has a tensor 'preprocessor.featurizer.window' that is empty or reaches outside it")


def test_a_value_that_is_not_finite_is_an_error_that_names_its_tensor(tmp_path, files, refusal):
    tensors = archives.tensors(VARIANT)
    tensors["encoder.layers.0.norm_out.weight"] = torch.full((archives.D,), float("nan"))
    message = refused_with(WEIGHTS, archives.checkpoint(tensors), tmp_path, files, refusal)
    assert message == "encoder.layers.0.norm_out.weight has a value that is not finite in float32"


def test_tensors_with_shared_or_strided_storage_are_read_correctly(tmp_path, files):
    from safetensors import safe_open

    tensors = archives.tensors(VARIANT)
    name = "encoder_decoder_proj.weight"
    expected = tensors[name].clone()
    tensors[name] = torch.cat([torch.ones(1, 48), expected.T]).T[:, 1:]  # column-major, with an offset
    archive = archives.write_archive(tmp_path / "m.nemo", {**files, WEIGHTS: archives.checkpoint(tensors)})
    folder = convert(ConversionConfig(source=archive, output=tmp_path / "out"))
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor(name), expected)
