"""Rows of a tensor, so few at a time that what is made of them stays in the processor's cache.

Elementwise work on a whole batch of activations waits for memory: a laptop's, or that of a machine
with neighbours. In blocks it is read once. A GPU, whose every call costs, takes as many rows as
memory does not notice.
"""

from collections.abc import Iterator

from torch import Tensor

# Values in fp32 are 1 MiB; on a GPU 256.
_VALUES, _ON_GPU = 2**18, 2**26


def blocks(count: int, width: int, device: str) -> Iterator[slice]:
    """Runs of `count` rows of `width` values, one after the other."""
    rows = max((_VALUES if device == "cpu" else _ON_GPU) // max(width, 1), 1)
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def in_cache(tensor: Tensor) -> Iterator[Tensor]:
    """Blocks of the first dimension of a tensor that is there."""
    width = tensor.numel() // max(len(tensor), 1)
    for rows in blocks(len(tensor), width, tensor.device.type):
        yield tensor[rows]
