"""Weights of few bits: rows of codes in bytes, and a scale and a zero for each group of columns.

    w = scale * code + zero,   code in 0 .. 2^bits - 1

In a checkpoint, a linear `x` has `x.codes` (uint8 [out, bytes]), `x.scales` and `x.zeros` (the bit
patterns of float16 as int16 [out, group]) in place of `x.weight`; `packed` in config.json says how
many bits and how many columns a group has. `modeling_secateur.PackedLinear` runs them; that file
travels alone, and so it unpacks by code of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int16, UInt8
from torch import Tensor

from ..errors import SecateurError
from .view import TensorSpec, View, only, together

PARTS = ("codes", "scales", "zeros")


@dataclass(frozen=True)
class Packed:
    """The weight of one linear in few bits; `width` is its number of input columns."""

    codes: UInt8[Tensor, "out bytes"]
    scales: Int16[Tensor, "out group"]
    zeros: Int16[Tensor, "out group"]
    bits: int
    group: int
    width: int

    @classmethod
    def of(
        cls,
        codes: UInt8[Tensor, "out in"],
        scales: Float[Tensor, "out group"],
        zeros: Float[Tensor, "out group"],
        bits: int,
        group: int,
    ) -> "Packed":
        """Pack `codes`; scales and zeros are rounded to float16."""
        scales, zeros = (p.to(torch.float16).view(torch.int16) for p in (scales, zeros))
        return cls(packed(codes, bits), scales, zeros, bits, group, codes.shape[1])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, by the last part of the name."""
        return {part: getattr(self, part) for part in PARTS}

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The floating-point weight that it stands for, computed in fp32."""
        codes = unpacked(self.codes, self.bits, self.width).float()
        columns = min(self.group, self.width)
        scales, zeros = (
            part.view(torch.float16).float().repeat_interleave(columns, dim=1)[:, : self.width]
            for part in (self.scales, self.zeros)
        )
        return (codes * scales + zeros).to(dtype)


def packed(codes: UInt8[Tensor, "row width"], bits: int) -> UInt8[Tensor, "row bytes"]:
    """Codes of `bits` each in bytes, lowest bits first, every row from a byte of its own."""
    places = torch.arange(bits, dtype=torch.uint8)
    ones = ((codes[..., None] >> places) & 1).flatten(-2)
    ones = torch.nn.functional.pad(ones, (0, -ones.shape[-1] % 8))
    values = 2 ** torch.arange(8, dtype=torch.uint8)
    return (ones.unflatten(-1, (-1, 8)) * values).sum(dim=-1, dtype=torch.uint8)


def unpacked(
    codes: UInt8[Tensor, "row bytes"], bits: int, width: int
) -> UInt8[Tensor, "row width"]:
    """The other way round: `width` codes a row."""
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
        return ((codes[..., None] >> shifts) & (2**bits - 1)).flatten(-2)[..., :width]
    places = torch.arange(8, dtype=torch.uint8, device=codes.device)
    ones = ((codes[..., None] >> places) & 1).flatten(-2)[..., : width * bits]
    values = 2 ** torch.arange(bits, dtype=torch.uint8, device=codes.device)
    return (ones.unflatten(-1, (width, bits)) * values).sum(dim=-1, dtype=torch.uint8)


def unpacked_view(view: View, settings: Mapping[str, Any], dtype: torch.dtype) -> View:
    """A checkpoint with packed linears, read as if it were a floating-point one of `dtype`.

    Raises:
        SecateurError: a part of a packed linear is missing, or is not what `settings` say.
    """
    try:
        bits, group = int(settings["bits"]), int(settings["group"])
        widths = {f"{path}.weight": int(width) for path, width in settings["modules"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _incomplete(f"config.json has no sound table 'packed' ({error})") from error
    parts = {name: _parts(name) for name in widths}
    for name, width in widths.items():
        _check(view, parts[name], bits, group, width)

    def made(name: str, read: Callable[[str], Tensor]) -> Tensor:
        return _stored(name, read, bits, group, widths[name]).weight(dtype)

    codes = {parts[name]["codes"]: name for name in widths}
    specs = {
        name: TensorSpec((view.specs[code].shape[0], widths[name]), dtype)
        for code, name in codes.items()
    }
    made_of = View(specs, lambda name: made(name, view.tensor), lambda name: made(name, view.head))
    gone = {part for stored in parts.values() for part in stored.values()} - {*codes}
    return only(together(view, made_of), (codes.get(n, n) for n in view.specs if n not in gone))


def packed_linears(view: View, settings: Mapping[str, Any]) -> dict[str, Callable[[], Packed]]:
    """The packed linears of a checkpoint as they are stored, by the names of their weights."""
    bits, group = int(settings["bits"]), int(settings["group"])
    modules = {f"{path}.weight": int(width) for path, width in settings["modules"].items()}
    return {
        name: partial(_stored, name, view.tensor, bits, group, width)
        for name, width in modules.items()
    }


def _stored(name: str, read: Callable[[str], Tensor], bits: int, group: int, width: int) -> Packed:
    """The packed linear whose weight has a name."""
    stored = {part: read(whole) for part, whole in _parts(name).items()}
    return Packed(**stored, bits=bits, group=group, width=width)


def _parts(name: str) -> dict[str, str]:
    """The names of the parts of a packed linear, by part; `name` is that of its weight."""
    return {part: f"{name.removesuffix('weight')}{part}" for part in PARTS}


def _check(view: View, parts: Mapping[str, str], bits: int, group: int, width: int) -> None:
    """Make sure that the parts of a linear are there, and have the shapes that config.json says."""
    for part in parts.values():
        if part not in view.specs:
            raise _incomplete(f"{part} is missing")
    if not (2 <= bits <= 8 and group >= 1 and width >= 1):
        raise _incomplete(f"{bits} bits, groups of {group}, width {width}")
    rows = view.specs[parts["codes"]].shape[:1]
    groups = -(-width // group)
    wanted = {
        "codes": ((*rows, -(-width * bits // 8)), torch.uint8),
        "scales": ((*rows, groups), torch.int16),
        "zeros": ((*rows, groups), torch.int16),
    }
    for part, (shape, dtype) in wanted.items():
        spec = view.specs[parts[part]]
        if (spec.shape, spec.dtype) != (shape, dtype):
            raise _incomplete(
                f"{parts[part]} is {spec.dtype} {list(spec.shape)}, config.json says {dtype}"
                f" {list(shape)}"
            )


def _incomplete(reason: str) -> SecateurError:
    return SecateurError(
        f"The packed weights are incomplete: {reason}.\nDownload the model, or make it, again."
    )
