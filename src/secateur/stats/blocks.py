"""Rows of a tensor, so few at a time that what is made of them stays in the processor's cache.

Elementwise work on a whole batch of activations waits for memory: a laptop's, or that of a machine
with neighbours. In blocks it is read once. A GPU, where every call costs, takes larger ones, that
are still small beside its memory.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# So many values: 1 MiB in fp32, 256 MiB on a GPU. Of wide rows there are as many as threads on a
# CPU: each takes a row, and has a cache of its own.
_VALUES, _ON_GPU = 2**18, 2**26


def at_once(device: str) -> int:
    """How many values a block has at most, unless a row (on a CPU: one a thread) has more."""
    return _VALUES if device == "cpu" else _ON_GPU


def blocks(count: int, width: int, device: str) -> Iterator[slice]:
    """Runs of `count` rows of `width` values, one after the other."""
    least = torch.get_num_threads() if device == "cpu" else 1
    rows = max(at_once(device) // max(width, 1), least)
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def in_cache(tensor: Tensor) -> Iterator[Tensor]:
    """Blocks of the first dimension of a tensor that is there."""
    width = tensor.numel() // max(len(tensor), 1)
    for rows in blocks(len(tensor), width, tensor.device.type):
        yield tensor[rows]
