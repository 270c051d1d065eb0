"""A Parakeet's weights and configuration as mlx-audio and parakeet-mlx, which share a layout, take them."""

import re

import mlx.core as mx

LSTM = r"(decoder\.prediction\.dec_rnn\.lstm)\.weight_(ih|hh)_l(\d)"


def placed(weights: dict) -> dict[str, mx.array]:
    """NeMo's tensors by the names of those networks; one bias for an LSTM layer, convolutions with channels last."""
    found = {}
    for name, value in weights.items():
        array = value.float().numpy()
        if name.startswith("preprocessor.") or name.endswith("num_batches_tracked") or ".bias_hh_l" in name:
            continue
        if ".bias_ih_l" in name:
            array = array + weights[name.replace("bias_ih", "bias_hh")].numpy()
            name = re.sub(r"\.bias_ih_l(\d)", r".\1.bias", name)
        name = re.sub(LSTM, lambda m: f"{m[1]}.{m[3]}.{'Wx' if m[2] == 'ih' else 'Wh'}", name)
        if array.ndim == 3:
            array = array.swapaxes(1, 2)
        elif array.ndim == 4:
            array = array.transpose(0, 2, 3, 1)
        found[name] = mx.array(array)
    return found


def configuration_of(nemo: dict, weights: dict) -> dict:
    """NeMo's configuration with what they do not default as NeMo does."""
    encoder = {"use_bias": "encoder.layers.0.feed_forward1.linear1.bias" in weights, **nemo["encoder"]}
    return {**nemo, "encoder": encoder}
