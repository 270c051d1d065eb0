"""Small `.nemo` archives with the structure of the four published models, built without NeMo.

Names and shapes are taken from NeMo's own files, independently of the tables in `convert` that they test.
"""

import functools
import gzip
import io
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from safetensors import safe_open

D, HEADS, CHANNELS, HIDDEN, LONGEST, BANDS = 32, 4, 8, 48, 64, 128


@dataclass(frozen=True)
class Variant:
    """How the structure of one published model differs from the others."""

    prompt_format: str
    tokenizer: str
    hidden: int
    decoder_layers: int
    aligner: bool = False


VARIANTS = {
    "180m-flash": Variant("canary2", "agg", HIDDEN, 2),
    "1b-flash": Variant("canary2", "agg", D, 2),
    "1b": Variant("canary", "agg", D, 3),
    "1b-v2": Variant("canary2", "bpe", D, 2, aligner=True),
}
LANGUAGES = ("en", "de", "es", "fr")
SPECIAL = ("<pad>", "<|endoftext|>", "<|startoftranscript|>")


@functools.cache
def sentencepiece_model(name: str, symbols: tuple[str, ...] = ()) -> bytes:
    """A tokenizer of about 40 pieces, trained on made-up words. `name` is their random seed."""
    rng = random.Random(name)
    words = ["".join(rng.choice("bdklmnt") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))) for _ in range(200)]
    lines = (" ".join(rng.choices(words, k=6)) for _ in range(200))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=lines,
        model_writer=model,
        vocab_size=40 + len(symbols),
        model_type="bpe",
        user_defined_symbols=list(symbols),
        minloglevel=2,
    )
    return model.getvalue()


def tokenizers(variant: str) -> dict[str, bytes]:
    """SentencePiece models by language. A unified tokenizer has the key ""."""
    if VARIANTS[variant].tokenizer == "bpe":
        return {"": sentencepiece_model("unified", (*SPECIAL, "<|en|>", "<|uk|>", "<|zu|>"))}
    special = sentencepiece_model("special", SPECIAL)
    return {"spl_tokens": special, **{language: sentencepiece_model(language) for language in LANGUAGES}}


def vocabulary_rows(variant: str) -> int:
    sizes = (sentencepiece.SentencePieceProcessor(model_proto=model) for model in tokenizers(variant).values())
    return 8 * -(-sum(size.vocab_size() for size in sizes) // 8)


def config(variant: str) -> dict[str, Any]:
    """`model_config.yaml`, including keys that conversion must ignore."""
    shape, langs = VARIANTS[variant], tokenizers(variant)
    slots = {"source_lang": "<|en|>", "target_lang": "<|en|>", "pnc": "<|pnc|>"}
    paths = {language: {"type": "bpe", "model_path": f"nemo:{md5(language)}_tokenizer.model"} for language in langs}
    tokenizer = {"type": "bpe", **paths[""]} if shape.tokenizer == "bpe" else {"type": "agg", "langs": paths}
    return {
        "target": "nemo.collections.asr.models.aed_multitask_models.EncDecMultiTaskModel",
        "prompt_format": shape.prompt_format,
        "prompt_defaults": [{"role": "user", "slots": slots}] if shape.prompt_format == "canary2" else None,
        "tokenizer": tokenizer,
        "preprocessor": {
            "sample_rate": 16000,
            "normalize": "per_feature",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": BANDS,
            "n_fft": 512,
            "log": True,
            "dither": 1e-5,
        },
        "encoder": encoder_config(),
        "transf_encoder": {"num_layers": 0, "hidden_size": 512},
        "transf_decoder": {
            "pre_ln_final_layer_norm": True,
            "config_dict": {
                "max_sequence_length": LONGEST,
                "num_token_types": 0,
                "learn_positional_encodings": False,
                "hidden_size": shape.hidden,
                "inner_size": 4 * shape.hidden,
                "num_layers": shape.decoder_layers,
                "num_attention_heads": HEADS,
                "hidden_act": "relu",
                "pre_ln": True,
                "vocab_size": None,
            },
        },
        "head": {"num_layers": 1, "log_softmax": True, "num_classes": vocabulary_rows(variant)},
        "decoding": {"strategy": "beam", "beam": {"beam_size": 1, "len_pen": 0.5, "max_generation_delta": 50}},
    }


def encoder_config(**changes: Any) -> dict[str, Any]:
    return {
        "feat_in": BANDS,
        "n_layers": 2,
        "d_model": D,
        "n_heads": HEADS,
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_channels": CHANNELS,
        "causal_downsampling": False,
        "ff_expansion_factor": 4,
        "self_attention_model": "rel_pos",
        "att_context_size": [-1, -1],
        "xscaling": False,
        "untie_biases": True,
        "conv_kernel_size": 9,
        "conv_norm_type": "batch_norm",
        "dropout": 0.1,
        **changes,
    }


def md5(name: str) -> str:
    """A stand-in for the MD5 hash with which NeMo prefixes file names."""
    return f"{name or 'unified':_>32}".replace("_", "0")


class RandomTensors(dict[str, torch.Tensor]):
    """Tensors added by name and shape, with random values from a seed."""

    def __init__(self, seed: int):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, name: str, *shape: int) -> None:
        values = 0.5 * torch.randn(shape, generator=self.generator)
        self[name] = values.abs() + 0.1 if name.endswith(("running_var", "fb")) else values

    def layer(self, name: str, *shape: int, bias: bool = True) -> None:
        self.tensor(f"{name}.weight", *shape)
        if bias:
            self.tensor(f"{name}.bias", shape[0])


class Zeros(RandomTensors):
    """The same names and shapes filled with zeros, for sizes that would take long to randomize."""

    def __init__(self):
        super().__init__(seed=0)

    def tensor(self, name: str, *shape: int) -> None:
        self[name] = torch.zeros(shape)


def encoder_tensors(
    values: RandomTensors,
    d: int = D,
    layers: int = 2,
    channels: int = CHANNELS,
    bias: bool = True,
    bands: int = BANDS,
    kernel: int = 9,
    heads: int = HEADS,
) -> None:
    values.tensor("preprocessor.featurizer.window", 400)
    values.tensor("preprocessor.featurizer.fb", 1, bands, 257)
    values.layer("encoder.pre_encode.conv.0", channels, 1, 3, 3)
    for depthwise in (2, 5):
        values.layer(f"encoder.pre_encode.conv.{depthwise}", channels, 1, 3, 3)
        values.layer(f"encoder.pre_encode.conv.{depthwise + 1}", channels, channels, 1, 1)
    values.layer("encoder.pre_encode.out", d, bands // 8 * channels)
    for layer in (f"encoder.layers.{n}" for n in range(layers)):
        for norm in ("norm_feed_forward1", "norm_self_att", "norm_conv", "norm_feed_forward2", "norm_out"):
            values.layer(f"{layer}.{norm}", d)
        for feed_forward in ("feed_forward1", "feed_forward2"):
            values.layer(f"{layer}.{feed_forward}.linear1", 4 * d, d, bias=bias)
            values.layer(f"{layer}.{feed_forward}.linear2", d, 4 * d, bias=bias)
        for part in ("q", "k", "v", "out"):
            values.layer(f"{layer}.self_attn.linear_{part}", d, d, bias=bias)
        values.layer(f"{layer}.self_attn.linear_pos", d, d, bias=False)
        for part in ("u", "v"):
            values.tensor(f"{layer}.self_attn.pos_bias_{part}", heads, d // heads)
        values.layer(f"{layer}.conv.pointwise_conv1", 2 * d, d, 1, bias=bias)
        values.layer(f"{layer}.conv.depthwise_conv", d, 1, kernel, bias=bias)
        values.layer(f"{layer}.conv.pointwise_conv2", d, d, 1, bias=bias)
        values.layer(f"{layer}.conv.batch_norm", d)
        values.tensor(f"{layer}.conv.batch_norm.running_mean", d)
        values.tensor(f"{layer}.conv.batch_norm.running_var", d)
        values[f"{layer}.conv.batch_norm.num_batches_tracked"] = torch.tensor(7)


def decoder_tensors(values: RandomTensors, m: int, layers: int, rows: int, d: int = D, longest: int = LONGEST) -> None:
    if d != m:
        values.layer("encoder_decoder_proj", m, d)
    values.tensor("transf_decoder._embedding.token_embedding.weight", rows, m)
    values.tensor("transf_decoder._embedding.position_embedding.pos_enc", longest, m)
    values.layer("transf_decoder._embedding.layer_norm", m)
    for layer in (f"transf_decoder._decoder.layers.{n}" for n in range(layers)):
        for norm in (1, 2, 3):
            values.layer(f"{layer}.layer_norm_{norm}", m)
        for attention in ("first_sub_layer", "second_sub_layer"):
            for net in ("query_net", "key_net", "value_net", "out_projection"):
                values.layer(f"{layer}.{attention}.{net}", m, m)
        values.layer(f"{layer}.third_sub_layer.dense_in", 4 * m, m)
        values.layer(f"{layer}.third_sub_layer.dense_out", m, 4 * m)
    values.layer("transf_decoder._decoder.final_layer_norm", m)
    values["log_softmax.mlp.layer0.weight"] = values["transf_decoder._embedding.token_embedding.weight"]
    values.tensor("log_softmax.mlp.layer0.bias", rows)


def tensors(variant: str) -> dict[str, torch.Tensor]:
    """`model_weights.ckpt`."""
    values = RandomTensors(seed=1)
    encoder_tensors(values)
    decoder_tensors(values, VARIANTS[variant].hidden, VARIANTS[variant].decoder_layers, vocabulary_rows(variant))
    return dict(values)


def aligner_tensors() -> dict[str, torch.Tensor]:
    """`timestamps_asr_model_weights.ckpt`: no biases in the encoder, and one extra class, the CTC blank."""
    values = RandomTensors(seed=2)
    encoder_tensors(values, bias=False)
    values.layer("decoder.decoder_layers.0", vocabulary_rows("1b-v2") + 1, D, 1)
    return dict(values)


def checkpoint(values: Any) -> bytes:
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def members(variant: str, **replaced: Any) -> dict[str, bytes]:
    """An archive's files by name. replaced: `config` or `tensors` to use instead of the variant's own."""
    files = {f"{md5(language)}_tokenizer.model": model for language, model in tokenizers(variant).items()}
    files |= {f"{md5(language)}_vocab.txt": b"##a\n" for language in tokenizers(variant)}
    if VARIANTS[variant].aligner:
        files["aligner_tokenizer.model"] = sentencepiece_model("aligner", ("<|en|>", "<|uk|>", "<|zu|>"))
        aligner = {key: config(variant)[key] for key in ("preprocessor",)} | {
            "encoder": encoder_config(use_bias=False),
            "decoder": {"feat_in": D, "num_classes": vocabulary_rows(variant)},
            "tokenizer": {"type": "bpe", "model_path": "nemo:aligner_tokenizer.model"},
        }
        files["timestamps_asr_model_config.yaml"] = yaml.safe_dump(aligner, sort_keys=False).encode()
        files["timestamps_asr_model_weights.ckpt"] = checkpoint(aligner_tensors())
    files["model_config.yaml"] = yaml.safe_dump(replaced.get("config", config(variant)), sort_keys=False).encode()
    files["model_weights.ckpt"] = checkpoint(replaced.get("tensors", tensors(variant)))
    return files


def write_archive(path: Path, files: dict[str, bytes], *, gzipped: bool = False, prefix: str = "./") -> Path:
    with (
        gzip.open(path, "wb", 1) if gzipped else path.open("wb") as file,
        tarfile.open(fileobj=file, mode="w:") as archive,
    ):
        for name, content in files.items():
            add(archive, f"{prefix}{name}", content)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **header: Any) -> None:
    """Add one member. header: fields of its TarInfo."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in header.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def tiny_archive(folder: Path, variant: str = "180m-flash", **options: Any) -> Path:
    """An archive in `folder` with the name of the published one."""
    replaced = {key: options.pop(key) for key in ("config", "tensors") if key in options}
    return write_archive(folder / f"canary-{variant}.nemo", members(variant, **replaced), **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a converted folder."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "mlx"}
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
