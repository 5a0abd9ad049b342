"""Hidden states of all windows between two layers: in memory, or memory-mapped past a limit."""

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ..errors import SecateurError
from ..units import size_text

# Hidden states of 128 windows of 2048 tokens at width 4096 in bf16 are 2 GiB.
MEMORY_LIMIT = 4 * 2**30


class Activations:
    """A [window, token, hidden] tensor that layers read from and write back to.

    Larger than `limit` bytes, it lives in an unnamed temporary file in `folder` (the system's
    place for such by default; $TMPDIR moves it), and the operating system keeps in memory what
    fits.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        *,
        limit: int = MEMORY_LIMIT,
        folder: Path | None = None,
    ) -> None:
        elements = shape[0] * shape[1] * shape[2]
        self.mapped = elements * dtype.itemsize > limit
        if self.mapped:
            with tempfile.NamedTemporaryFile(dir=folder, prefix="secateur-") as file:
                _reserve(file.fileno(), elements * dtype.itemsize, file.name)
                flat = torch.from_file(file.name, shared=True, size=elements, dtype=dtype)
            self.tensor = flat.view(shape)
        else:
            self.tensor = torch.empty(shape, dtype=dtype)

    def __getitem__(self, windows: slice) -> Tensor:
        return self.tensor[windows]

    def __setitem__(self, windows: slice, hidden: Tensor) -> None:
        self.tensor[windows] = hidden.to(self.tensor.device)

    def clone(self, *, limit: int = MEMORY_LIMIT) -> "Activations":
        """A second, independent copy (a student beside its teacher)."""
        count, length, width = self.tensor.shape
        other = Activations((count, length, width), self.tensor.dtype, limit=limit)
        other.tensor.copy_(self.tensor)
        return other


def _reserve(file: int, size: int, name: str) -> None:
    """Take the space on disk now: a full disk would kill the process later, in mid-write."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        raise SecateurError(
            f"No space for {size_text(size)} of hidden states in {Path(name).parent}"
            f" ({error.strerror}).\nPoint TMPDIR to a larger disk, or raise --hidden-gib."
        ) from error
