"""A model's tensors as llama.cpp has them: its names, its order of rows, its number formats.

A rotary embedding turns pairs of rows of q and k. transformers pairs row i of a head with row
i + d/2; architectures that are `interleaved` pair rows 2i and 2i + 1:

    W'[h, 2i + s] = W[h, s * d/2 + i]      head h, half s, i < d/2

A block that is gone is written as the smallest one there is, of zeros: it adds zero to the stream,
to the bit, and llama.cpp is wrong or refuses where there are heads and no channels, or none in the
first layer.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import Packed, View, unpacked
from ..errors import SecateurError
from ..gguf_types import ROW, stored_bytes, stored_type
from .gguf_layout import Layout
from .layers import DOWN, GATE, UP, K, O, Q, Sizes, V

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_NORMS = ("input_layernorm", "post_attention_layernorm")
# What holds numbers of any size.
_WIDE = ("F32", "BF16")
# In these, codes are written as they are.
_OF_CODES = ("Q4_1", "Q5_1")
_ENDS = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: its name there, its shape, how it is made (fp32), its format.

    One that is stored in few bits has its `codes`; `rows` brings their rows in llama.cpp's order.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    kind: str = "F32"
    codes: Callable[[], Packed] | None = None
    rows: Callable[[Tensor], Tensor] | None = None

    @property
    def bytes(self) -> int:
        """What it takes."""
        *rows, row = self.shape
        return stored_bytes(self.kind, row, math.prod(rows))

    @property
    def is_end(self) -> bool:
        """Whether it is the embedding or the head."""
        return self.name in _ENDS


def filled_sizes(sizes: Sequence[Sizes]) -> list[Sizes]:
    """With the smallest blocks in the place of those that are gone."""
    return [Sizes(one.heads or 1, one.kv_heads or 1, one.width or ROW) for one in sizes]


def entries(
    weights: View,
    codes: Mapping[str, Callable[[], Packed]],
    layout: Layout,
    *,
    as_codes: bool,
    named: Callable[[str], str],
) -> list[Entry]:
    """All tensors in fp32; `named` gives llama.cpp's names.

    Linears in few bits (`codes`) are made of these, and written as they are if `as_codes`.
    """

    def exact(name: str) -> Callable[[], Packed] | None:
        return codes.get(name) if as_codes else None

    found = {
        name: Entry(
            named(name), tuple(spec.shape), _reader(weights, codes, name), codes=exact(name)
        )
        for name, spec in weights.specs.items()
        if not (layout.tied and name == "lm_head.weight")
    }
    width = layout.width
    for layer, own in enumerate(layout.sizes):
        for name, shape in _missing(own, width, layout.head_dim).items():
            full = f"model.layers.{layer}.{name}.weight"
            found[full] = Entry(named(full), shape, _filled(shape, 0.0))
        for name in _NORMS:
            full = f"model.layers.{layer}.{name}.weight"
            found.setdefault(full, Entry(named(full), (width,), _filled((width,), 1.0)))
    return [_arranged(name, entry, layout) for name, entry in found.items()]


def _reader(
    weights: View, codes: Mapping[str, Callable[[], Packed]], name: str
) -> Callable[[], Tensor]:
    if name in codes:  # the view rounds them to the dtype of the checkpoint
        return lambda: codes[name]().weight(torch.float32)
    return lambda: weights.tensor(name).detach().cpu().float()


def _filled(shape: tuple[int, ...], value: float) -> Callable[[], Tensor]:
    return lambda: torch.full(shape, value)


def _missing(own: Sizes, width: int, head_dim: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the smallest blocks, where there are none."""
    shapes: dict[str, tuple[int, ...]] = {}
    if own.heads == 0:
        shapes |= dict.fromkeys((Q, K, V), (head_dim, width)) | {O: (width, head_dim)}
    if own.width == 0:
        shapes |= dict.fromkeys((GATE, UP), (ROW, width)) | {DOWN: (width, ROW)}
    return shapes


def _arranged(name: str, entry: Entry, layout: Layout) -> Entry:
    """With rows in llama.cpp's order, and norms as it has them."""
    one, head_dim = layout.one, layout.head_dim
    match = _LAYER.fullmatch(name)
    if one.interleaved and match and match[2] in (Q, K):
        return replace(
            entry,
            make=lambda: interleaved(entry.make(), head_dim),
            rows=lambda rows: interleaved(rows, head_dim),
        )
    if name.endswith("norm.weight"):
        times = layout.sharper if name.endswith("self_attn.q_norm.weight") else 1.0
        return replace(entry, make=lambda: (entry.make() + one.shift) * times)
    return entry


def interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """Rows [head * dim, ...] of q or k with the halves of each head beside one another."""
    halves = rows.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def formatted(found: Sequence[Entry], kind: str, ends: str) -> list[Entry]:
    """The entries in the format `kind` (of `BLOCKS`).

    Norms and biases stay in fp32, embedding and head are `ends`; rows that blocks do not divide
    have 16 bits.
    """
    chosen = []
    for entry in found:
        asked = ends if entry.is_end else kind
        whole = "F32" if len(entry.shape) == 1 else stored_type(asked, entry.shape[-1])
        chosen.append(replace(entry, kind=whole or "F16"))
    return chosen


def arrays(found: Sequence[Entry]) -> Iterator[Any]:
    """The bytes of each, in turn, as numpy arrays.

    Raises:
        SecateurError: a number is too large for its format.
    """
    from gguf import GGMLQuantizationType, quants

    for entry in found:
        if entry.codes is not None and entry.kind in _OF_CODES:
            yield blocks_of(entry.codes(), entry.rows)
            continue
        value = entry.make().contiguous()
        if entry.kind not in _WIDE and value.abs().max() > torch.finfo(torch.float16).max:
            raise SecateurError(
                f"{entry.name} has numbers above {torch.finfo(torch.float16).max:,.0f}, which is"
                f" where 16 bits of {entry.kind} end.\nType --type bf16, or f32."
            )
        yield quants.quantize(value.numpy(), GGMLQuantizationType[entry.kind])


def blocks_of(one: Packed, rows: Callable[[Tensor], Tensor] | None) -> Any:
    """Codes of 4 or 5 bits as blocks of Q4_1 or Q5_1, uint8 [out, bytes]: the same, to the bit.

    A block has 32 codes q of w = d q + m: d and m in fp16; of five bits the highest, one a code;
    then bytes with the lower four of code i and of code i + 16.
    """
    codes = unpacked(one.codes, one.bits, one.width)
    scales, zeros = one.scales, one.zeros
    if rows is not None:
        codes, scales, zeros = rows(codes), rows(scales), rows(zeros)
    codes = codes.unflatten(1, (-1, ROW))
    each = one.group // ROW if one.group < one.width else codes.shape[1]
    parts = [
        part.repeat_interleave(each, dim=1)[:, : codes.shape[1], None]
        .contiguous()
        .view(torch.uint8)
        for part in (scales, zeros)
    ]
    if one.bits == 5:
        places = 2 ** torch.arange(8, dtype=torch.uint8)
        parts.append(((codes >> 4).unflatten(2, (4, 8)) * places).sum(dim=3, dtype=torch.uint8))
    low = codes & 15
    parts.append(low[..., : ROW // 2] | (low[..., ROW // 2 :] << 4))
    return torch.cat(parts, dim=2).flatten(1).numpy()


def exact_kind(codes: Mapping[str, Callable[[], Packed]]) -> str | None:
    """The format that holds what is stored in few bits to the bit; None: there is none."""
    bits: set[int] = set()
    for make in codes.values():
        one = make()
        if one.group % ROW and one.group < one.width:
            return None
        bits.add(one.bits)
    return {4: "q4_1", 5: "q5_1"}.get(bits.pop()) if len(bits) == 1 else None


def declared(found: Sequence[Entry], writer: Any) -> None:
    """Tell the writer what is to come."""
    import numpy
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

    plain: Mapping[str, Any] = {"F32": numpy.float32, "F16": numpy.float16}
    for entry in found:
        kind = GGMLQuantizationType[entry.kind]
        if entry.kind in plain:
            writer.add_tensor_info(entry.name, entry.shape, plain[entry.kind], entry.bytes)
        else:
            shape = quant_shape_to_byte_shape(entry.shape, kind)
            dtype = numpy.dtype(numpy.uint8)
            writer.add_tensor_info(entry.name, shape, dtype, entry.bytes, raw_dtype=kind)
