"""Hidden states of all windows between two layers: in memory, or memory-mapped past a limit."""

import mmap
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import Kept, header
from ..errors import SecateurError
from ..units import size_text

# Hidden states of 128 windows of 2048 tokens at width 4096 in bf16 are 2 GiB.
MEMORY_LIMIT = 4 * 2**30


class Activations:
    """A [window, token, hidden] tensor that layers read from and write back to.

    Larger than `limit` bytes, it lives in an unnamed temporary file in `folder` (the system's
    place for such by default; $TMPDIR moves it), and the operating system keeps in memory what
    fits. With `file` it lives in that safetensors file, with what an earlier run wrote there.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        *,
        limit: int = MEMORY_LIMIT,
        folder: Path | None = None,
        file: Path | None = None,
    ) -> None:
        elements = shape[0] * shape[1] * shape[2]
        self.mapped = file is not None or elements * dtype.itemsize > limit
        if file is not None:
            self.tensor = _in_file(file, torch.empty(shape, dtype=dtype, device="meta"))
        elif self.mapped:
            with tempfile.NamedTemporaryFile(dir=folder, prefix="secateur-") as unnamed:
                _reserve(unnamed.fileno(), elements * dtype.itemsize, unnamed.name)
                flat = torch.from_file(unnamed.name, shared=True, size=elements, dtype=dtype)
            self.tensor = flat.view(shape)
        else:
            self.tensor = torch.empty(shape, dtype=dtype)

    def __getitem__(self, windows: slice) -> Tensor:
        return self.tensor[windows]

    def __setitem__(self, windows: slice, hidden: Tensor) -> None:
        self.tensor[windows] = hidden.to(self.tensor.device)

    def clone(self, *, limit: int = MEMORY_LIMIT) -> "Activations":
        """A second, independent copy (a student beside its teacher)."""
        return Activations.of(self.tensor, limit=limit)

    @classmethod
    def kept(
        cls, kept: Kept, name: str, shape: tuple[int, int, int], dtype: torch.dtype, limit: int
    ) -> "Activations":
        """States that belong to a pass, with what an earlier run wrote; within `limit` if none."""
        file = kept.file(name)
        if file is not None:
            try:
                return cls(shape, dtype, file=file)
            except (OSError, SecateurError) as error:
                kept.forget(str(error).split("\n")[0])
        return cls(shape, dtype, limit=limit)

    @classmethod
    def of(cls, tensor: Tensor, *, limit: int = MEMORY_LIMIT) -> "Activations":
        """A copy of a tensor [window, token, hidden]."""
        count, length, width = tensor.shape
        made = cls((count, length, width), tensor.dtype, limit=limit)
        made.tensor.copy_(tensor)
        return made


def _in_file(path: Path, like: Tensor) -> Tensor:
    """The tensor in a file of its own, which is made if it is not there (or is another's)."""
    head = header({"states": like}, {})
    size = len(head) + like.numel() * like.element_size()
    path.touch()
    with path.open("r+b") as file:
        if file.read(len(head)) != head or path.stat().st_size != size:
            file.truncate(0)
            _reserve(file.fileno(), size, str(path))
            os.pwrite(file.fileno(), head, 0)
        memory = mmap.mmap(file.fileno(), size)
    return torch.frombuffer(memory, dtype=like.dtype, offset=len(head)).view(like.shape)


def _reserve(file: int, size: int, name: str) -> None:
    """Take the space on disk now: a full disk would kill the process later, in mid-write."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        raise SecateurError(
            f"No space for {size_text(size)} of hidden states in {Path(name).parent}"
            f" ({error.strerror}).\nPoint TMPDIR to a larger disk, or raise --hidden-gib."
        ) from error
