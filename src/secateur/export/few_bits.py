"""The form of a model whose linears hold few bits: the codes in place of the weights."""

from collections.abc import Mapping
from dataclasses import replace

from ..checkpoint import Packed, View, held, only, together
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
        weights=with_codes(form.weights, packed),
    )


def with_codes(view: View, packed: Mapping[str, Packed]) -> View:
    """`view` with the three parts of each packed linear, by path, in place of its weight."""
    parts = {
        f"{path}.weight": {f"{path}.{part}": tensor for part, tensor in one.tensors.items()}
        for path, one in packed.items()
    }
    codes = held({name: tensor for own in parts.values() for name, tensor in own.items()})
    return only(together(view, codes), (n for name in view.specs for n in parts.get(name, [name])))
