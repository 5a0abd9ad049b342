"""What other engines make of the widths that are left: quantised rows, tensor parallelism."""

import math
from collections.abc import Mapping, Sequence

from ..checkpoint import TensorSpec
from ..gguf_types import K_ROW, ROW
from ..structure import Structure, format_ranges

# (values in a block of a row, what llama.cpp makes of rows that are not made of such blocks)
_BLOCKS = (
    (ROW, "keeps them in 16 bits beside k-quants, and refuses q4_0 and q8_0"),
    (K_ROW, "has no k-quants (q4_K and the like) for them, but types of smaller blocks"),
)


def engine_notes(
    structure: Structure, before: Mapping[str, TensorSpec], after: Mapping[str, TensorSpec]
) -> list[str]:
    """What to tell the user of rows that could be quantised before the cut, and now cannot.

    A row is what a linear reads: llama.cpp cuts it into blocks of 32 or 256 values; see
    `secateur.gguf_types` for what becomes of other rows.
    """
    notes = []
    told: set[str] = set()
    for block, what in _BLOCKS:
        found: dict[int, int] = {}
        kinds: set[str] = set()
        for axis in structure.axes:
            if axis.layer < 0 or axis.of or axis.consumer.tensor not in after:
                continue
            member = axis.consumer
            was, now = (specs[member.tensor].shape[member.dim] for specs in (before, after))
            if was % block == 0 and now % block and axis.name not in told:
                found[axis.layer] = now
                kinds.add(axis.kind)
                told.add(axis.name)
        if found:
            layers = format_ranges(sorted(found))
            layers = f"layer {layers}" if len(found) == 1 else f"layers {layers}"
            example = next(iter(found.values()))
            cure = f"; --align {block} makes MLP widths that are" if "mlp" in kinds else ""
            notes.append(
                f"linears of {layers} read rows that are no multiples of {block} (one of"
                f" {example:,} values): llama.cpp {what}{cure}"
            )
    return notes


def parallel_sizes(groups: Sequence[int]) -> list[int]:
    """The numbers of devices that the KV groups of all layers can be shared out to evenly."""
    common = math.gcd(*groups)
    return [size for size in range(1, common + 1) if common % size == 0]
