"""Which class loads the pruned weights: the family's stock class if it can, or else ours.

A plan that leaves every layer with the same widths is a plain checkpoint, if the stock class
builds exactly those tensors. Where it asks for more biases than there are (Llama has them on
q, k, v and o together, or on none), zeros fill them in. Everything else is written in
transformers' `per_layer_config` schema, with `modeling_secateur.py` beside the weights.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .. import modeling_secateur
from ..checkpoint import TensorSpec, Weights
from ..modeling_secateur import PREFIX
from ..models import Family, empty_model
from ..structure import Plan, Structure

_OWN_KEYS = (
    "auto_map",
    "per_layer_config",
    "pruned_modules",
    "allow_global_per_layer_attribute_access",
)
_BIAS_FLAGS = ("attention_bias", "mlp_bias")


@dataclass(frozen=True)
class Form:
    """config.json of a pruned model, and its tensors."""

    config: Mapping[str, Any]
    weights: Weights
    stock: bool

    def empty(self, dtype: torch.dtype | None = None) -> Any:
        """The transformers model that the folder would load as, without weights."""
        name = str(self.config["architectures"][0])
        module: Any = transformers if self.stock else modeling_secateur
        config = getattr(module, name).config_class.from_dict(dict(self.config))
        return empty_model(config, dtype or next(iter(self.weights.specs.values())).dtype)


def pruned_form(
    family: Family,
    raw_config: Mapping[str, Any],
    config: Any,
    structure: Structure,
    plan: Plan,
    weights: Weights,
) -> Form:
    """Find the form that `weights` (already cut) are written in.

    `raw_config` is the original config.json, `config` transformers' reading of it.
    """
    widths = _widths(structure, plan)
    base = _stock_config(family, raw_config, config)
    return _stock(family, base, widths, weights) or _own(family, base, widths, weights)


def _widths(structure: Structure, plan: Plan) -> dict[int, dict[str, int]]:
    """By layer, the config attributes that the kept units add up to."""
    widths: dict[int, dict[str, int]] = {}
    for axis in structure.axes:
        kept = len(plan.kept(axis))
        widths.setdefault(axis.layer, {}).update({name: n * kept for name, n in axis.counts})
    return widths


def _stock_config(family: Family, raw: Mapping[str, Any], config: Any) -> dict[str, Any]:
    stock = getattr(transformers, family.config)
    base = {key: value for key, value in raw.items() if key not in _OWN_KEYS}
    return base | {
        "model_type": stock.model_type,
        "architectures": [family.model],
        "head_dim": family.head_dim(config),
    }


def _stock(
    family: Family, base: dict[str, Any], widths: dict[int, dict[str, int]], weights: Weights
) -> Form | None:
    first = next(iter(widths.values()))
    if any(layer != first for layer in widths.values()):
        return None
    for flags in _bias_flags(base):
        candidate = base | first | flags
        try:
            expected = _specs(_skeleton(family, candidate))
        except Exception:
            continue
        fill = expected.keys() - weights.specs.keys()
        fits = weights.specs.keys() <= expected.keys() and all(
            weights.specs[name].shape == spec.shape
            for name, spec in expected.items()
            if name not in fill
        )
        if fits and all(name.endswith(".bias") for name in fill):
            return Form(candidate, _ZeroFilled(weights, expected), stock=True)
    return None


def _own(
    family: Family, base: dict[str, Any], widths: dict[int, dict[str, int]], weights: Weights
) -> Form:
    config = base | {
        "model_type": f"{PREFIX.lower()}_{base['model_type']}",
        "architectures": [PREFIX + family.model],
        "auto_map": {
            "AutoConfig": f"modeling_secateur.{PREFIX}{family.config}",
            "AutoModelForCausalLM": f"modeling_secateur.{PREFIX}{family.model}",
        },
        "allow_global_per_layer_attribute_access": True,
        "per_layer_config": {str(layer): sizes for layer, sizes in widths.items()},
        "pruned_modules": _resized(_skeleton(family, base), weights.specs),
    }
    return Form(config, weights, stock=False)


def _resized(dense: nn.Module, specs: Mapping[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    """The linears whose shape differs from what the stock class builds."""
    resized: dict[str, dict[str, Any]] = {}
    for path, module in dense.named_modules():
        if not isinstance(module, nn.Linear) or f"{path}.weight" not in specs:
            continue
        rows, columns = specs[f"{path}.weight"].shape
        bias = f"{path}.bias" in specs
        now = {"in_features": columns, "out_features": rows, "bias": bias}
        if now != {
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": module.bias is not None,
        }:
            resized[path] = now
    return resized


def _skeleton(family: Family, raw: Mapping[str, Any]) -> nn.Module:
    config = getattr(transformers, family.config).from_dict(dict(raw))
    model: nn.Module = empty_model(config, torch.float32)
    return model


def _specs(model: nn.Module) -> dict[str, TensorSpec]:
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    return {
        name: TensorSpec(tuple(tensor.shape), tensor.dtype)
        for name, tensor in model.state_dict().items()
        if name not in tied
    }


def _bias_flags(base: Mapping[str, Any]) -> list[dict[str, bool]]:
    """The config as it is, then with more and more of the bias flags that it has set."""
    flags = [flag for flag in _BIAS_FLAGS if base.get(flag) is False]
    return [
        dict.fromkeys(chosen, True)
        for count in range(len(flags) + 1)
        for chosen in itertools.combinations(flags, count)
    ]


class _ZeroFilled:
    """`weights` with zeros for the biases that only the stock class has."""

    def __init__(self, weights: Weights, expected: Mapping[str, TensorSpec]) -> None:
        self._weights = weights
        dtype = next(iter(weights.specs.values())).dtype
        self._specs = {
            name: weights.specs.get(name, replace(spec, dtype=dtype))
            for name, spec in expected.items()
        }

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        return self._specs

    def tensor(self, name: str) -> Tensor:
        if name in self._weights.specs:
            return self._weights.tensor(name)
        return torch.zeros(self._specs[name].shape, dtype=self._specs[name].dtype)

    def head(self, name: str) -> Tensor:
        return self.tensor(name)[:1]
