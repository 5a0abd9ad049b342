"""What llama.cpp makes of a row of so many values, by type: blocks, sizes, and what falls back.

    bytes of a tensor = rows * row / block * bytes of a block

A row, what one output of a linear reads, is cut into blocks that share a scale; a type whose block
does not divide the row is replaced by one of blocks of 32, or by 16 bits. Without a replacement
llama-quantize breaks off, or writes 16 bits, by its version.

Sizes are those of `gguf.GGML_QUANT_SIZES` (gguf 0.19). What falls back to what is as in
`tensor_type_fallback` of ggml-org/llama.cpp, src/llama-quant.cpp at 007dbbf.
"""

# By type: values in a block, bytes of one.
BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

# Rows of all quantised types and of k-quants are multiples of these.
ROW, K_ROW = 32, 256


def stored_type(wanted: str, row: int) -> str | None:
    """The type that rows of `row` values get where `wanted` is asked for; None: it breaks off."""
    if row % BLOCKS[wanted][0] == 0:
        return wanted
    if wanted not in FALLBACK:
        return None
    found = FALLBACK[wanted]
    return found if row % BLOCKS[found][0] == 0 else "F16"


def stored_bytes(kind: str, row: int, rows: int) -> int:
    """Bytes of a tensor of type `kind`, whose block divides `row`."""
    block, size = BLOCKS[kind]
    return rows * row // block * size
