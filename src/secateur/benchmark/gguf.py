"""How large a model's GGUF file is in a mixture of types, estimated from its rows alone.

The tensors alone: the tokenizer adds one to three MB. What llama.cpp gives which tensor is as in
`llama_tensor_get_type_impl` of ggml-org/llama.cpp, src/llama-quant.cpp at 007dbbf, without an
importance matrix. Left out are its exceptions for Falcon, for 70B and for mixtures of eight
experts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..gguf_types import BLOCKS, stored_bytes, stored_type
from .rows import Rows


@dataclass(frozen=True, slots=True)
class Mixture:
    """The `base` type, that of the `head`, and that of v and down in some layers (`more`)."""

    base: str
    head: str
    more: str = ""


MIXTURES = {
    "F16": Mixture("F16", "F16"),
    "Q8_0": Mixture("Q8_0", "Q8_0"),
    "Q6_K": Mixture("Q6_K", "Q6_K"),
    "Q5_K_M": Mixture("Q5_K", "Q6_K", more="Q6_K"),
    "Q4_K_M": Mixture("Q4_K", "Q6_K", more="Q6_K"),
    "Q4_0": Mixture("Q4_0", "Q6_K"),
}


@dataclass(frozen=True, slots=True)
class FileSize:
    """Bytes of the tensors of a file, of which so many did not get the type that was wanted.

    `bytes` is None where llama-quantize breaks off.
    """

    bytes: int | None
    fallen: int
    in_16_bits: int


def file_size(rows: Sequence[Rows], mixture: Mixture) -> FileSize:
    """The size of a file of `rows`."""
    total, fallen, wide = 0, 0, 0
    for one, wanted in wanted_types(rows, mixture):
        kind = stored_type(wanted, one.row)
        if kind is None:
            return FileSize(None, 0, 0)
        total += stored_bytes(kind, one.row, one.rows)
        fallen += kind != wanted
        wide += kind != wanted and kind == "F16"
    return FileSize(total, fallen, wide)


def wanted_types(rows: Sequence[Rows], mixture: Mixture) -> Iterator[tuple[Rows, str]]:
    """Each of the rows with the type that it is to have, whether its length allows it or not."""
    counts = {part: sum(one.part == part for one in rows) for part in ("value", "down")}
    seen = dict.fromkeys(counts, 0)
    for one in rows:
        wanted = mixture.base
        if one.part == "kept":
            wanted = "F32"
        elif one.part == "head":
            wanted = mixture.head if one.row % BLOCKS[mixture.base][0] == 0 else "Q8_0"
        elif one.part in seen:
            if mixture.more and more_bits(seen[one.part], counts[one.part]):
                wanted = mixture.more
            seen[one.part] += 1
        yield one, wanted


def more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is one of the first or last eighth, or of every third between them."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
