"""Hidden states of all windows between two layers: on the device, in memory, or memory-mapped.

On the device as far as there is room for them; else in memory up to a limit, which is pinned where
the device is a GPU, so that nothing waits for copies; past it in a file that is mapped.
"""

import mmap
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import Kept, header
from ..device_memory import Room
from ..errors import SecateurError
from ..units import size_text

# Hidden states of 128 windows of 2048 tokens at width 4096 in bf16 are 2 GiB.
MEMORY_LIMIT = 4 * 2**30


class Activations:
    """A [window, token, hidden] tensor that layers read from and write back to.

    Where the `room` on the device is too small for it, and it is larger than `limit` bytes, it
    lives in an unnamed temporary file in the system's place for such ($TMPDIR moves it), and the
    operating system keeps in memory what fits. With `file` it lives in that
    safetensors file, with what an earlier run wrote there. Where other processes have the windows
    before it, `first` is the number of its first one: windows are named by their numbers among all.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        *,
        limit: int = MEMORY_LIMIT,
        room: Room | None = None,
        file: Path | None = None,
        first: int = 0,
    ) -> None:
        self._first = first
        elements = shape[0] * shape[1] * shape[2]
        on_device = None if room is None or file is not None else room.empty(shape, dtype, self)
        self._room = room
        self.mapped = file is not None or (on_device is None and elements * dtype.itemsize > limit)
        if file is not None:
            self._tensor = _in_file(file, torch.empty(shape, dtype=dtype, device="meta"))
        elif on_device is not None:
            self._tensor = on_device
        elif self.mapped:
            with tempfile.NamedTemporaryFile(prefix="secateur-") as unnamed:
                _reserve(unnamed.fileno(), elements * dtype.itemsize, unnamed.name)
                flat = torch.from_file(unnamed.name, shared=True, size=elements, dtype=dtype)
            self._tensor = flat.view(shape)
        else:
            self._tensor = _in_memory(shape, dtype, limit, pinned=_on_gpu(room))
        self._pinned = _on_gpu(room) and self._tensor.is_pinned()
        self._moving = False  # whether the device may still be at copies from or to it

    @property
    def tensor(self) -> Tensor:
        """All of it, wherever it is, when all that was written has arrived."""
        if self._moving and self._room is not None:
            torch.cuda.current_stream(self._room.device).synchronize()
            self._moving = False
        return self._tensor

    def __getitem__(self, windows: slice) -> Tensor:
        """Some windows: on the device, if nothing need wait for it."""
        own = self._tensor[self._here(windows)]
        if not self._pinned or self._room is None:
            return own
        self._moving = True
        return own.to(self._room.device, non_blocking=True)

    def __setitem__(self, windows: slice, hidden: Tensor) -> None:
        if self._pinned and hidden.device.type == "cuda":
            self._moving = True
            self._tensor[self._here(windows)].copy_(hidden, non_blocking=True)
        else:
            self.tensor[self._here(windows)] = hidden.to(self._tensor.device)

    def _here(self, windows: slice) -> slice:
        if not self._first:
            return windows
        return slice(windows.start - self._first, windows.stop - self._first)

    def clone(self, *, limit: int = MEMORY_LIMIT) -> "Activations":
        """A second, independent copy (a student beside its teacher), in the same room."""
        return Activations.of(self.tensor, limit=limit, room=self._room, first=self._first)

    @classmethod
    def kept(
        cls,
        kept: Kept,
        name: str,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        limit: int,
        room: Room | None = None,
    ) -> "Activations":
        """States that belong to a pass, with what an earlier run wrote; within `limit` if none."""
        file = kept.file(name)
        if file is not None:
            try:
                return cls(shape, dtype, room=room, file=file)
            except (OSError, SecateurError) as error:
                kept.forget(str(error).split("\n")[0])
        return cls(shape, dtype, limit=limit, room=room)

    @classmethod
    def of(
        cls,
        tensor: Tensor,
        *,
        limit: int = MEMORY_LIMIT,
        room: Room | None = None,
        first: int = 0,
    ) -> "Activations":
        """A copy of a tensor [window, token, hidden]."""
        count, length, width = tensor.shape
        made = cls((count, length, width), tensor.dtype, limit=limit, room=room, first=first)
        made.tensor.copy_(tensor)
        return made


def _on_gpu(room: Room | None) -> bool:
    return room is not None and room.device.type == "cuda"


def _in_memory(
    shape: tuple[int, int, int], dtype: torch.dtype, limit: int, *, pinned: bool
) -> Tensor:
    """Memory of the host; pinned, if it is to be and the limit allows it.

    Pinned memory comes in powers of two.
    """
    size = shape[0] * shape[1] * shape[2] * dtype.itemsize
    if pinned and 1 << (size - 1).bit_length() <= limit:
        with suppress(RuntimeError):  # the system gives no more of it
            return torch.empty(shape, dtype=dtype, pin_memory=True)
    return torch.empty(shape, dtype=dtype)


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
