"""Archives that are damaged, incomplete or hostile: one clear line each, and nothing left behind."""

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
    """Converts an archive, and gives back the one line it was refused with; nothing may be left of the try."""

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
    """The archive with one more member, as no well-meaning program writes it."""
    archives.write_archive(path, files)
    with tarfile.open(path, "a:") as archive:
        archives.add(archive, name, content, **header)
    return path


def repacked(checkpoint: bytes, change: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch checkpoint with some of its records replaced."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as old, zipfile.ZipFile(written, "w", compression) as new:
        for record in old.infolist():
            short = record.filename.partition("/")[2]
            new.writestr(record.filename, change.get(short, old.read(record)))
    return written.getvalue()


# ---- the archive ----


def test_a_text_file_is_not_an_archive(tmp_path, refusal):
    path = tmp_path / "page.nemo"
    path.write_text("<html>Please log in to download this model.</html>\n" * 40)
    assert "page.nemo is not a whole .nemo archive (tar)" in refusal(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", b"\x1f\x8b\x08" + bytes(600), gzip.compress(b"words"), bytes(2048)]
)
def test_what_only_begins_like_an_archive_is_refused(tmp_path, refusal, content):
    path = tmp_path / "model.nemo"
    path.write_bytes(content)
    assert "is not a whole .nemo archive (tar)" in refusal(path)


def test_a_missing_file_is_named(tmp_path, refusal):
    assert refusal(tmp_path / "absent.nemo").endswith("absent.nemo: there is no such file")


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("gzipped", [False, True])
def test_a_truncated_archive_is_refused_and_leaves_nothing(tmp_path, files, refusal, part, gzipped):
    path = archives.write_archive(tmp_path / "model.nemo", files, gzipped=gzipped)
    os.truncate(path, int(path.stat().st_size * part))
    assert "model.nemo" in refusal(path)


def test_an_archive_cut_within_a_file_says_where(tmp_path, files, refusal):
    path = archives.write_archive(tmp_path / "model.nemo", files)
    os.truncate(path, path.stat().st_size - 100_000)
    assert "it ends inside './model_weights.ckpt'; download it again" in refusal(path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, f"{archives.md5('fr')}_tokenizer.model"])
def test_an_archive_without_one_of_its_files_says_which(tmp_path, files, refusal, name):
    path = archives.write_archive(tmp_path / "model.nemo", {key: files[key] for key in files if key != name})
    assert refusal(path).endswith(f"{name} is missing")


def test_a_file_is_not_taken_for_another_that_ends_alike(tmp_path, files, refusal):
    renamed = {f"timestamps_{name}" if name == CONFIG else name: files[name] for name in files}
    assert refusal(archives.write_archive(tmp_path / "model.nemo", renamed)).endswith("model_config.yaml is missing")


@pytest.mark.parametrize("name", ["../evil", "./../evil", "a/../../evil", "/tmp/evil", "./a/.."])
def test_a_member_that_leads_outside_is_refused(tmp_path, files, refusal, name):
    message = refusal(with_member(tmp_path / "model.nemo", files, name, b"x"))
    assert message.endswith(f"member {name!r} leads outside the archive")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_is_refused(tmp_path, files, refusal, kind):
    path = with_member(tmp_path / "model.nemo", files, "./extra", type=kind, linkname="/etc/passwd")
    assert refusal(path).endswith("member './extra' is a link or a special file")


def test_a_link_in_place_of_the_configuration_is_not_followed(tmp_path, files, refusal):
    others = {name: files[name] for name in files if name != CONFIG}
    path = with_member(tmp_path / "model.nemo", others, CONFIG, type=tarfile.LNKTYPE, linkname=f"./{WEIGHTS}")
    assert refusal(path).endswith(f"member '{CONFIG}' is a link or a special file")


def test_a_name_that_appears_twice_is_refused_however_it_is_written(tmp_path, files, refusal):
    path = with_member(tmp_path / "model.nemo", files, f".//{CONFIG}", files[CONFIG])
    assert refusal(path).endswith(f"member '{CONFIG}' appears twice")


def test_endless_members_are_refused(tmp_path, refusal, monkeypatch):
    monkeypatch.setattr("convert.nemo.MAX_MEMBERS", 20)
    path = archives.write_archive(tmp_path / "model.nemo", {f"file{n}": b"" for n in range(21)})
    assert refusal(path).endswith("over 20 members")


def test_a_gzip_bomb_is_stopped_while_it_unzips(tmp_path, refusal, monkeypatch):
    monkeypatch.setattr("convert.nemo.MAX_UNZIPPED_BYTES", 2**20)
    path = archives.write_archive(tmp_path / "model.nemo", {"zeros": bytes(2**24)}, gzipped=True)
    assert refusal(path).endswith("model.nemo unzips to over 1048576 bytes")


# ---- the configuration and the tokenizers ----


def refused_with(name: str, content: bytes, tmp_path, files, refusal) -> str:
    return refusal(archives.write_archive(tmp_path / "model.nemo", {**files, name: content}))


def test_a_yaml_tag_that_would_make_an_object_is_refused_and_runs_nothing(tmp_path, files, refusal):
    witness = tmp_path / "ran"
    content = f"target: !!python/object/apply:os.mkdir [{witness}]\n".encode()
    assert "model_config.yaml is not plain yaml" in refused_with(CONFIG, content, tmp_path, files, refusal)
    assert not witness.exists()


def test_a_target_in_the_configuration_is_never_called(tmp_path, files):
    config = yaml.safe_load(files[CONFIG])
    config["encoder"]["_target_"] = "os.abort"
    config["tokenizer"]["custom_tokenizer"] = {"_target_": "os.abort"}
    archive = archives.write_archive(tmp_path / "m.nemo", {**files, CONFIG: yaml.safe_dump(config).encode()})
    assert convert(ConversionConfig(source=archive, output=tmp_path / "out")).is_dir()


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00", b"- 1\n- 2\n", b"", b"[" * 5000])
def test_a_configuration_that_is_not_one_is_refused(tmp_path, files, refusal, content):
    assert CONFIG in refused_with(CONFIG, content, tmp_path, files, refusal)


def test_a_huge_configuration_is_not_parsed(tmp_path, files, refusal):
    message = refused_with(CONFIG, b"#" * (10 * 2**20 + 1), tmp_path, files, refusal)
    assert message.endswith("model_config.yaml has 10485761 bytes, over the limit of 10485760")


def test_aliases_that_multiply_are_refused(tmp_path, files, refusal):
    laughs = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    message = refused_with(CONFIG, "\n".join(laughs).encode(), tmp_path, files, refusal)
    assert message.endswith("model_config.yaml has over 1000000 values once its references are followed")


def test_a_tokenizer_that_is_not_sentencepiece_is_refused(tmp_path, files, refusal):
    name = f"{archives.md5('en')}_tokenizer.model"
    message = refused_with(name, b"not a model", tmp_path, files, refusal)
    assert "tokenizer.en.model is not a SentencePiece model" in message


@pytest.mark.parametrize("language", ["../en", "EN", "a" * 21])
def test_a_language_that_would_name_a_file_elsewhere_is_refused(tmp_path, files, refusal, language):
    config = yaml.safe_load(files[CONFIG])
    config["tokenizer"]["langs"][language] = config["tokenizer"]["langs"].pop("en")
    message = refused_with(CONFIG, yaml.safe_dump(config).encode(), tmp_path, files, refusal)
    assert f"tokenizer of {language!r}" in message


# ---- the checkpoint ----


def test_an_extra_tensor_is_named(tmp_path, files, refusal):
    content = archives.checkpoint({**archives.tensors(VARIANT), "transf_decoder.extra": torch.zeros(3)})
    message = refused_with(WEIGHTS, content, tmp_path, files, refusal)
    assert message == "transf_decoder.extra (3,) is not a tensor of this model"


def test_a_missing_tensor_is_named(tmp_path, files, refusal):
    tensors = archives.tensors(VARIANT)
    del tensors["encoder_decoder_proj.bias"]
    message = refused_with(WEIGHTS, archives.checkpoint(tensors), tmp_path, files, refusal)
    assert message == "encoder_decoder_proj.bias (48,) is missing"


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path, files, refusal):
    tensors = {**archives.tensors(VARIANT), "encoder_decoder_proj.weight": torch.zeros(32, 48)}
    message = refused_with(WEIGHTS, archives.checkpoint(tensors), tmp_path, files, refusal)
    assert message == "encoder_decoder_proj.weight has the shape (32, 48), expected (48, 32)"


class Hostile:
    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path, files, refusal):
    witness = tmp_path / "ran"
    content = archives.checkpoint({**archives.tensors(VARIANT), "extra": Hostile(witness)})
    message = refused_with(WEIGHTS, content, tmp_path, files, refusal)
    assert message.endswith("model_weights.ckpt holds more than tensors and was refused")
    assert not witness.exists()


def test_a_bare_pickle_is_refused_and_runs_nothing(tmp_path, files, refusal):
    witness = tmp_path / "ran"
    message = refused_with(WEIGHTS, pickle.dumps(Hostile(witness)), tmp_path, files, refusal)
    assert "model_weights.ckpt is not a whole torch checkpoint" in message
    assert not witness.exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {"a": 1}, {1: torch.zeros(2)}, torch.zeros(2)])
def test_a_checkpoint_of_something_else_than_named_tensors_is_refused(tmp_path, files, refusal, content):
    message = refused_with(WEIGHTS, archives.checkpoint(content), tmp_path, files, refusal)
    assert "is not a tensor" in message or "not a dictionary of tensors" in message


def test_a_flipped_bit_in_the_weights_is_found(tmp_path, files, refusal):
    content = bytearray(files[WEIGHTS])
    content[len(content) // 2] ^= 1
    message = refused_with(WEIGHTS, bytes(content), tmp_path, files, refusal)
    assert "model_weights.ckpt is damaged at" in message


def test_a_checkpoint_cut_short_within_a_whole_archive_is_refused(tmp_path, files, refusal):
    message = refused_with(WEIGHTS, files[WEIGHTS][:-5000], tmp_path, files, refusal)
    assert "model_weights.ckpt is not a whole torch checkpoint" in message


def test_a_damaged_index_is_refused(tmp_path, files, refusal):
    content = repacked(files[WEIGHTS], {"data.pkl": b"\x80\x02}q\x00(X\x01"})
    message = refused_with(WEIGHTS, content, tmp_path, files, refusal)
    assert "model_weights.ckpt has an index that cannot be read: " in message


def test_compressed_records_are_refused_before_they_are_read(tmp_path, files, refusal):
    content = repacked(files[WEIGHTS], {}, zipfile.ZIP_DEFLATED)
    message = refused_with(WEIGHTS, content, tmp_path, files, refusal)
    assert message.endswith("model_weights.ckpt has compressed records, which torch does not write")


def test_a_tensor_larger_than_its_record_is_refused(tmp_path, files, refusal):
    content = repacked(files[WEIGHTS], {"data/0": bytes(4)})
    message = refused_with(WEIGHTS, content, tmp_path, files, refusal)
    assert message.endswith("has a tensor 'preprocessor.featurizer.window' that does not lie within it")


def test_numbers_that_are_not_finite_are_named(tmp_path, files, refusal):
    tensors = archives.tensors(VARIANT)
    tensors["encoder.layers.0.norm_out.weight"] = torch.full((archives.D,), float("nan"))
    message = refused_with(WEIGHTS, archives.checkpoint(tensors), tmp_path, files, refusal)
    assert message == "encoder.layers.0.norm_out.weight holds a number that is not finite as float32"


def test_tensors_that_share_or_stride_their_storage_are_read_right(tmp_path, files):
    from safetensors import safe_open

    tensors = archives.tensors(VARIANT)
    name = "encoder_decoder_proj.weight"
    expected = tensors[name].clone()
    tensors[name] = torch.cat([torch.ones(1, 48), expected.T]).T[:, 1:]  # an offset, and columns first
    archive = archives.write_archive(tmp_path / "m.nemo", {**files, WEIGHTS: archives.checkpoint(tensors)})
    folder = convert(ConversionConfig(source=archive, output=tmp_path / "out"))
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor(name), expected)
