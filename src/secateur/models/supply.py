"""The weights of a streamed model on their way to the device: read, read ahead, or there already.

On a GPU the next layer is read by a thread into pinned memory and copied on a stream of its own,
while the layer before it runs. Where all weights are to stay (`resident`), each is read once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..checkpoint import View
from ..device_memory import Room, free_bytes
from ..registry import choose
from .ahead import Ahead

# Whether weights stay, by what was asked for: if they take no more than this share of what is free
# on the GPU. On a CPU they stay if they are to, and not of themselves.
RESIDENT = {"auto": 0.5, "yes": 1.0, "no": 0.0}


def stays(asked: str, device: torch.device, size: int) -> bool:
    """Whether `size` bytes of weights stay on the device, as they are `asked` to.

    Raises:
        SecateurError: something else was asked for.
    """
    share = choose("--resident", asked, RESIDENT)
    if device.type == "cpu":
        return asked == "yes"
    return size <= share * free_bytes(device)


class Supply:
    """The tensors of `weights` by name as parameters on the device of `room`, in `dtype`.

    What it `keeps`, `size` bytes in all, is read once. Layers are read `ahead` on a GPU alone.
    """

    def __init__(
        self,
        weights: View,
        dtype: torch.dtype,
        room: Room,
        *,
        keeps: bool,
        size: int,
    ) -> None:
        self._weights, self._dtype, self._room = weights, dtype, room
        self.keeps, self.size = keeps, size
        self._kept: dict[str, nn.Parameter] = {}
        self._ready: dict[str, Tensor] = {}
        on_gpu = room.device.type == "cuda"
        self._stream = torch.cuda.Stream(room.device) if on_gpu else None
        self.ahead = Ahead() if on_gpu else None
        self._to_come = size if keeps else 0
        room.promise(self, self._to_come)

    def parameter(self, name: str) -> nn.Parameter:
        """The tensor `name`.

        Raises:
            SecateurError: it is not finite, or its file is corrupt.
        """
        if name in self._kept:
            return self._kept[name]
        tensor = self._ready.pop(name, None)
        if tensor is None:
            tensor = self._weights.tensor(name).to(device=self._room.device, dtype=self._dtype)
        parameter = nn.Parameter(tensor, requires_grad=False)
        if self.keeps:
            self._kept[name] = parameter
            self._to_come -= tensor.numel() * tensor.element_size()
            self._room.promise(self, self._to_come)
        return parameter

    def expect(self, layer: int, names: Sequence[str]) -> None:
        """Read the tensors `names` of a layer ahead: those that are not there yet."""
        missing = [name for name in names if name not in self._kept]
        if self.ahead is not None and missing:
            self.ahead.expect(layer, lambda: ((name, self._sent(name)) for name in missing))

    def leave_off(self) -> None:
        """No layer is expected any more."""
        if self.ahead is not None:
            self.ahead.leave_off()
        self._ready = {}

    @contextmanager
    def staying(self, limit: int) -> Iterator[None]:
        """While it is entered what is read stays, if all of it takes no more than `limit` bytes."""
        if self.keeps or self.size > limit:
            yield
            return
        self.keeps = True
        try:
            yield
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Nothing stays: what was read is read again when it is asked for."""
        self.keeps, self._to_come = False, 0
        self._kept.clear()
        self._room.promise(self, 0)

    def arrive(self, layer: int) -> None:
        """What was read ahead of a layer is to be its parameters.

        Raises:
            SecateurError: as `parameter`.
        """
        self._ready = self.ahead.take(layer) if self.ahead is not None else {}
        if self._stream is not None and self._ready:
            ours = torch.cuda.current_stream(self._room.device)
            ours.wait_stream(self._stream)
            for tensor in self._ready.values():
                tensor.record_stream(ours)  # its memory is the other stream's till ours is done

    def _sent(self, name: str) -> Tensor:
        """In the thread: a tensor on its way to the device."""
        tensor = self._weights.tensor(name)
        if self._stream is None:
            return tensor.to(device=self._room.device, dtype=self._dtype)
        with torch.cuda.stream(self._stream):
            # torch gives this pinned memory to nobody else before the copy is done
            staged = tensor.pin_memory() if tensor.device.type == "cpu" else tensor
            return staged.to(self._room.device, non_blocking=True).to(self._dtype)
