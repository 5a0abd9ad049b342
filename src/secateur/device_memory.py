"""The device that computes: what memory is free of it, what hidden states may take, ways there.

On a CPU there is no such memory: what asks for it says so, and does nothing.
"""

import math
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

# What layers, batches, products and solves need is left alone: a share of the device's memory, and
# no less than so many bytes.
_MARGIN_SHARE, _MARGIN = 0.25, 4 * 2**30


def free_bytes(device: torch.device) -> int:
    """What is free on a GPU, with what torch holds of it and nobody uses; elsewhere 0."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def available_bytes(device: torch.device) -> int:
    """What is free of the memory that a device computes in, a GPU's or the system's."""
    if device.type == "cuda":
        return free_bytes(device)
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text("ascii")
        return int(text.split("MemAvailable:")[1].split()[0]) * 1024
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2


def margin_bytes(device: torch.device) -> int:
    """What of a GPU's memory hidden states leave alone unless they are told how much is theirs."""
    if device.type != "cuda":
        return 0
    return max(int(torch.cuda.mem_get_info(device)[1] * _MARGIN_SHARE), _MARGIN)


def product_precision() -> str:
    """How torch was told to compute fp32 products: `highest`, `high` (TF32) or `medium` (bf16)."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was told by the newer names, for each backend
        backends = (torch.backends.cuda, torch.backends.mkldnn)
        told = {one.matmul.fp32_precision for one in backends}
        return "medium" if "bf16" in told else "high" if "tf32" in told else "highest"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor on the device, without waiting for what the device is still at."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Room:
    """What hidden states may take of the memory of `device`: `gib`, or what is free less a margin.

    All sets of hidden states of a run share it, whichever pass they belong to.
    """

    def __init__(self, device: torch.device, gib: float | None = None) -> None:
        self.device = device
        self._promises: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._allowed = None if gib is None else int(min(gib, 2**20) * 2**30)
        self._taken = 0

    @property
    def promised(self) -> int:
        """What others are going to take: weights that stay on the device and were not read yet."""
        return sum(self._promises.values())

    def promise(self, owner: object, size: int) -> None:
        """Leave `size` bytes to what `owner` is going to put there, for as long as it lives."""
        self._promises[owner] = size

    @property
    def left(self) -> int:
        """Bytes that nothing has taken yet."""
        if self.device.type == "cpu":
            return 0
        if self._allowed is not None:
            return self._allowed - self._taken
        return free_bytes(self.device) - margin_bytes(self.device) - self.promised

    def empty(self, shape: Sequence[int], dtype: torch.dtype, owner: object) -> Tensor | None:
        """A tensor on the device for as long as its `owner` lives; None if there is no room."""
        size = math.prod(shape) * dtype.itemsize
        if size > self.left:
            return None
        try:
            tensor = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        except torch.OutOfMemoryError:  # in pieces there may be as much
            return None
        self._taken += size
        weakref.finalize(owner, self._give, size).atexit = False
        return tensor

    def _give(self, size: int) -> None:
        self._taken -= size
