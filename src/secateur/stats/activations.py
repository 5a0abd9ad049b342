"""Hidden states of all windows between two layers: in memory, or memory-mapped past a limit."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

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
