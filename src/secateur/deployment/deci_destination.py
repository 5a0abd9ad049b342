"""A checkpoint for engines that know DeciLM: MLP widths by layer, and blocks that are gone.

config.json has `block_configs`, one for each layer; attention is there whole, or not at all: its
KV heads are what the config's number of heads leaves. What each holds is read from
vllm/model_executor/models/nemotron_nas.py, vLLM 0.32.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint import TensorSpec, View, only, write_shards, zero_filled
from ..errors import SecateurError
from ..export import whole_form
from ..models import OpenModel
from . import configuration_deci
from .destinations import Asked, Written, destination
from .layers import DOWN, GATE, UP, K, O, Q, Sizes, V, family_of, layer_sizes
from .stacked import unstacked

# Families whose layers compute what a Llama's do.
_FAMILIES = ("llama", "mistral", "phi3", "qwen2")
# What only the form that we write has, and what DeciLM says otherwise.
_OWN = ("per_layer_config", "pruned_modules", "allow_global_per_layer_attribute_access")
_LINEARS = {"attention_bias": (Q, K, V, O), "mlp_bias": (GATE, UP, DOWN)}


@destination(
    "deci", engines="vLLM's own kernels (DeciLM): MLP widths by layer, attention whole or gone"
)
def deci(folder: Path, asked: Asked) -> Written:
    """Write config.json with `block_configs`, the config's class, and safetensors.

    Raises:
        SecateurError: DeciLM does not compute the model, or has no such layers.
    """
    opened = asked.opened
    _check_family(opened)
    form = whole_form(opened)
    form = replace(form, weights=unstacked(replace(opened, weights=form.weights)).weights)
    shapes = {name: spec.shape for name, spec in form.weights.specs.items()}
    head_dim = opened.family.head_dim(opened.config)
    sizes = layer_sizes(shapes, int(form.config["num_hidden_layers"]), head_dim)
    _check(sizes)
    biased = {
        flag: any(
            f"model.layers.{n}.{one}.bias" in shapes for n in range(len(sizes)) for one in own
        )
        for flag, own in _LINEARS.items()
    }
    config = _config(form.config, sizes, biased) | {
        "hidden_size": shapes["model.embed_tokens.weight"][1]  # the stream may have been cut
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    shutil.copyfile(Path(configuration_deci.__file__), folder / "configuration_deci.py")
    weights = _with_biases(only(form.weights, _read(form.weights, sizes)), biased)
    size = write_shards(folder, weights.specs, weights.tensor)
    facts = {"class": "DeciLMForCausalLM", "bytes": size}
    return Written("config.json", "vllm serve {folder} --trust-remote-code", facts)


def _check_family(opened: OpenModel) -> None:
    """Make sure that DeciLM computes what the model does.

    Raises:
        SecateurError: it does not.
    """
    family, config = family_of(opened), opened.config
    why = ""
    if family not in _FAMILIES:
        why = f"has a Llama's layers, and {family} has others"
    elif config.hidden_act not in ("silu", "swish"):
        why = f"computes silu in its MLPs, and this model {config.hidden_act}"
    elif getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        why = "has no windows that slide"
    if why:
        raise SecateurError(
            f"DeciLM {why}.\nvLLM runs the folder as it is, by its backend for transformers'"
            " models: vllm serve DIR --trust-remote-code"
        )


def _check(sizes: Sequence[Sizes]) -> None:
    """Make sure that attention is whole or gone in every layer, and there in the first.

    Raises:
        SecateurError: it is not; the message names the layer, and the option that avoids it.
    """
    most = max((own.heads, own.kv_heads) for own in sizes)
    for layer, own in enumerate(sizes):
        why = ""
        if own.heads and (own.heads, own.kv_heads) != most:
            why = (
                f"has all query heads of a layer or none: layer {layer} has {own.heads} of"
                f" {most[0]} ({own.kv_heads} of {most[1]} KV)"
            )
        elif not own.heads and layer == 0:
            why = "begins with attention, and that of layer 0 is gone"
        if why:
            raise SecateurError(
                f"DeciLM {why}.\nPrune with --granularity channel, which leaves attention whole."
            )


def _config(
    config: Mapping[str, Any], sizes: Sequence[Sizes], biased: Mapping[str, bool]
) -> dict[str, Any]:
    """config.json; `sizes` are those of each layer."""
    heads, kv_heads = max((own.heads, own.kv_heads) for own in sizes)
    blocks = [
        {
            "attention": {"no_op": not own.heads, "n_heads_in_group": heads // kv_heads},
            "ffn": {"no_op": not own.width, "intermediate_size": own.width},
        }
        for own in sizes
    ]
    return {key: value for key, value in config.items() if key not in _OWN} | {
        **biased,
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_deci.SecateurDeciConfig"},
        "block_configs": blocks,
        "intermediate_size": max(own.width for own in sizes),
        "model_type": configuration_deci.SecateurDeciConfig.model_type,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def _read(view: View, sizes: Sequence[Sizes]) -> list[str]:
    """The tensors that DeciLM reads: of a block that is gone it knows no norm."""
    gone = {
        f"model.layers.{layer}.{norm}.weight"
        for layer, own in enumerate(sizes)
        for norm, there in (("input_layernorm", own.heads), ("post_attention_layernorm", own.width))
        if not there
    }
    return [name for name in view.specs if name not in gone]


def _with_biases(view: View, biased: Mapping[str, bool]) -> View:
    """The tensors, with zeros for the biases that DeciLM has once any layer has one."""
    wanted: dict[str, TensorSpec] = {}
    flags = {one: flag for flag, own in _LINEARS.items() for one in own}
    for name, spec in view.specs.items():
        wanted[name] = spec
        _, _, linear = name.removesuffix(".weight").partition("model.layers.")
        flag = flags.get(linear.partition(".")[2])
        if name.endswith(".weight") and flag is not None and biased[flag]:
            bias = f"{name.removesuffix('.weight')}.bias"
            wanted.setdefault(bias, view.specs.get(bias, TensorSpec(spec.shape[:1], spec.dtype)))
    return zero_filled(view, wanted)
