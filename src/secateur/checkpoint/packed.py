"""Weights of few bits: rows of codes in bytes, and a scale and a zero for each group of columns.

    w = scale * code + zero,   code in 0 .. 2^bits - 1

In a checkpoint, a linear `x` has `x.codes` (uint8 [out, bytes]), `x.scales` and `x.zeros` (the bit
patterns of float16 as int16 [out, group]) in place of `x.weight`; `packed` in config.json says how
many bits and how many columns a group has. `modeling_secateur.PackedLinear` runs them; that file
travels alone, and so it unpacks by code of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int16, UInt8
from torch import Tensor

from ..errors import SecateurError
from .weights import TensorSpec, Weights

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


class PackedWeights:
    """A checkpoint with packed linears, read as if it were a floating-point one.

    Raises:
        SecateurError: a part of a packed linear is missing.
    """

    def __init__(self, weights: Weights, settings: Mapping[str, Any], dtype: torch.dtype) -> None:
        self._weights, self._dtype = weights, dtype
        try:
            self._bits, self._group = int(settings["bits"]), int(settings["group"])
            self._widths = {
                f"{path}.weight": int(width) for path, width in settings["modules"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _incomplete(f"config.json has no sound table 'packed' ({error})") from error
        for name in self._widths:
            for part in PARTS:
                if f"{name.removesuffix('.weight')}.{part}" not in weights.specs:
                    raise _incomplete(f"{name.removesuffix('weight')}{part} is missing")
            self._check(name.removesuffix(".weight"), self._widths[name])

    def _check(self, path: str, width: int) -> None:
        """Make sure that the parts of a linear have the shapes that config.json says."""
        if not (2 <= self._bits <= 8 and self._group >= 1 and width >= 1):
            raise _incomplete(f"{self._bits} bits, groups of {self._group}, width {width}")
        rows = self._weights.specs[f"{path}.codes"].shape[:1]
        groups = -(-width // self._group)
        wanted = {
            "codes": ((*rows, -(-width * self._bits // 8)), torch.uint8),
            "scales": ((*rows, groups), torch.int16),
            "zeros": ((*rows, groups), torch.int16),
        }
        for part, (shape, dtype) in wanted.items():
            spec = self._weights.specs[f"{path}.{part}"]
            if (spec.shape, spec.dtype) != (shape, dtype):
                raise _incomplete(
                    f"{path}.{part} is {spec.dtype} {list(spec.shape)}, config.json says {dtype}"
                    f" {list(shape)}"
                )

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Names, shapes and dtypes; a packed linear has one weight in the model's dtype."""
        found: dict[str, TensorSpec] = {}
        for name, spec in self._weights.specs.items():
            path, _, part = name.rpartition(".")
            weight = f"{path}.weight"
            if weight not in self._widths or part not in PARTS:
                found[name] = spec
            elif part == PARTS[0]:
                found[weight] = TensorSpec((spec.shape[0], self._widths[weight]), self._dtype)
        return found

    def tensor(self, name: str) -> Tensor:
        """Read a tensor; the weight of a packed linear is made of its codes."""
        if name not in self._widths:
            return self._weights.tensor(name)
        path = name.removesuffix(".weight")
        parts = {part: self._weights.tensor(f"{path}.{part}") for part in PARTS}
        return Packed(**parts, bits=self._bits, group=self._group, width=self._widths[name]).weight(
            self._dtype
        )

    def head(self, name: str) -> Tensor:
        """The first row of `name`."""
        if name not in self._widths:
            return self._weights.head(name)
        path = name.removesuffix(".weight")
        parts = {part: self._weights.head(f"{path}.{part}") for part in PARTS}
        one = Packed(**parts, bits=self._bits, group=self._group, width=self._widths[name])
        return one.weight(self._dtype)


def _incomplete(reason: str) -> SecateurError:
    return SecateurError(
        f"The packed weights are incomplete: {reason}.\nDownload the model, or make it, again."
    )
