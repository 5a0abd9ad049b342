"""The form of a model whose linears hold few bits: the codes in place of the weights."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..checkpoint import PARTS, Packed, TensorSpec, Weights
from .form import Form


def packed_form(form: Form, packed: Mapping[str, Packed]) -> Form:
    """`form` (one of ours, not a stock one) with the linears `packed`, by path, in few bits."""
    assert not form.stock, "no stock class runs packed linears"
    first = next(iter(packed.values()))
    settings = {
        "bits": first.bits,
        "group": first.group,
        "modules": {path: one.width for path, one in packed.items()},
    }
    return replace(
        form,
        config={**form.config, "packed": settings},
        weights=_WithCodes(form.weights, packed),
    )


class _WithCodes:
    """Weights in which packed linears have their three parts."""

    def __init__(self, weights: Weights, packed: Mapping[str, Packed]) -> None:
        self._weights, self._packed = weights, packed
        self._specs: dict[str, TensorSpec] = {}
        for name, spec in weights.specs.items():
            path = name.removesuffix(".weight")
            if path not in packed or path == name:
                self._specs[name] = spec
                continue
            for part, tensor in packed[path].tensors.items():
                self._specs[f"{path}.{part}"] = TensorSpec(tuple(tensor.shape), tensor.dtype)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Names, shapes and dtypes."""
        return self._specs

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        path, _, part = name.rpartition(".")
        if path in self._packed and part in PARTS:
            return self._packed[path].tensors[part]
        return self._weights.tensor(name)

    def head(self, name: str) -> Tensor:
        """The first row of one tensor."""
        tensor = self.tensor(name)
        return tensor[:1] if tensor.dim() else tensor
