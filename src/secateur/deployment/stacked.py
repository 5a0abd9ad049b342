"""Linears that a checkpoint stacks, one by one: engines with separate ones hold the model too.

Phi-3's layers are a Llama's, with q, k and v in one weight and gate and up in another.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..checkpoint import Packed, TensorSpec, View
from ..models import OpenModel
from .layers import GATE, UP, K, O, Q, V, family_of

_QKV, _GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"
# By transformers' model_type; those of another layout are not among them.
_FAMILIES = ("phi3",)


def unstacked(opened: OpenModel) -> OpenModel:
    """The model with a weight of its own for each linear; as it is, if its family stacks none."""
    if family_of(opened) not in _FAMILIES:
        return opened
    parts = {
        part: where
        for name in opened.weights.specs
        for part, where in _parts(name, opened.weights.specs).items()
    }
    codes = {
        part: _packed_rows(opened.codes[source], start, stop)
        for part, (source, start, stop) in parts.items()
        if source in opened.codes
    }
    return replace(opened, weights=_view(opened.weights, parts), codes=codes)


def _parts(name: str, specs: Mapping[str, TensorSpec]) -> dict[str, tuple[str, int, int]]:
    """The linears in a tensor, each with the rows [start, stop) that are its own."""
    rows = specs[name].shape[0]
    for stacked, linears in ((_QKV, (Q, K, V)), (_GATE_UP, (GATE, UP))):
        layer, found, ending = name.partition(stacked)
        if not found:
            continue
        queries = specs[f"{layer}{O}.weight"].shape[1] if stacked == _QKV else rows // 2
        rest = (rows - queries) // (len(linears) - 1)
        counts = (queries, *(rest for _ in linears[1:]))
        starts = [sum(counts[:place]) for place in range(len(linears))]
        return {
            f"{layer}{linear}{ending}": (name, start, start + count)
            for linear, start, count in zip(linears, starts, counts, strict=True)
        }
    return {name: (name, 0, rows)}


def _view(view: View, parts: Mapping[str, tuple[str, int, int]]) -> View:
    specs = {
        part: TensorSpec((stop - start, *view.specs[source].shape[1:]), view.specs[source].dtype)
        for part, (source, start, stop) in parts.items()
    }
    return View(specs, lambda part: view.rows(*parts[part]), notes=view.notes)


def _packed_rows(make: Callable[[], Packed], start: int, stop: int) -> Callable[[], Packed]:
    def rows() -> Packed:
        one = make()
        codes, scales, zeros = (part[start:stop] for part in (one.codes, one.scales, one.zeros))
        return replace(one, codes=codes, scales=scales, zeros=zeros)

    return rows
