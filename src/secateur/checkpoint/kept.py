"""A pass that is kept: what it found, layer by layer, and how far it came.

    layer-7.safetensors   what was found in layer 7; in its metadata a value as JSON
    states.safetensors    while the pass is unfinished: the hidden states after the last layer that
                          is done, and in its metadata which ones are
    end.safetensors       what was found after the layers; where it is, the pass is whole

Each file is written under another name and renamed, so that it is whole or not there. Beside every
tensor stands a checksum, and one of all that stands beside the tensors: what a power cut or a bad
disk has left of it is not believed. Of hidden states, of which there are many, it is the sum of
their bytes; of what was found a CRC.
"""

import json
import math
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import SecateurError
from ..parsing import parse_json
from ..progress import note
from ..ranks import ALONE, Ranks
from .renaming import token
from .view import OnDemand
from .weights import DTYPES

STATES, END, PARTIAL = "states.safetensors", "end.safetensors", "partial-"
# Bytes of a tensor that are written, and brought from a device, at a time.
_PIECE = 2**28
_LAYER = re.compile(r"layer-(\d{1,6})\.safetensors")
# Keeping states takes at most this share of the time, once it has taken a second in all.
_SHARE, _FREE = 0.1, 1.0


class Kept:
    """One pass, in `folder`, or in memory alone if that is None.

    `done` are the layers that need not be passed again, in the order in which they were; `whole`
    says that nothing is left to do; it took `seconds` so far. One that another run makes is only
    looked at (`made`).

    Of several `ranks` the first writes, and the others look at what lies `beside` as soon as it
    does. Hidden states are not kept then: what is cut short begins anew.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        made: bool = True,
        ranks: Ranks = ALONE,
        beside: Path | None = None,
    ) -> None:
        self.folder, self._ranks, self._beside = folder, ranks, beside
        self.done: tuple[int, ...] = ()
        self.dropped, self._made = False, made
        self._found: dict[str, tuple[Mapping[str, Tensor], Any]] = {}
        self._started, self._spent = time.monotonic(), 0.0
        self.seconds = 0.0
        if folder is not None:
            if made:
                for rest in folder.glob(f"{PARTIAL}*"):
                    rest.unlink()
            self._read(folder)
            self.seconds = math.inf if self.done or self.whole else 0.0

    @property
    def whole(self) -> bool:
        """Whether the pass came to its end."""
        return END in self._found

    @property
    def layers(self) -> list[int]:
        """The layers in which something was found, in ascending order."""
        return sorted(int(layer[1]) for name in self._found if (layer := _LAYER.fullmatch(name)))

    def file(self, name: str) -> Path | None:
        """Where something of the pass's own lies that it reads and writes; None in memory."""
        return None if self.folder is None else self.folder / f"{name}.safetensors"

    def layer(
        self, index: int, found: Mapping[str, Tensor], value: Any, states: Mapping[str, Tensor]
    ) -> None:
        """Layer `index` is done: keep what was found in it, and the `states` after it."""
        self._keep(_layer(index), found, value)
        self.done = (*self.done, index)
        if self.folder is not None and not self._ranks.several and self._affordable():
            started = time.monotonic()
            self._write(STATES, states, list(self.done))
            self._spent += time.monotonic() - started
            self.seconds = max(self.seconds, time.monotonic() - self._started)

    def state(self, name: str) -> Tensor | None:
        """Hidden states after the last layer that is done; None if there were none."""
        return None if self.folder is None else _tensors(self.folder / STATES).get(name)

    def found(self, index: int) -> Mapping[str, Tensor]:
        """The tensors that were found in layer `index`, read when they are asked for."""
        return self._found[_layer(index)][0]

    def value(self, index: int) -> Any:
        """The value that was found in layer `index`."""
        return self._found[_layer(index)][1]

    def end(self, found: Mapping[str, Tensor] | None = None, value: Any = None) -> None:
        """The pass is whole: keep what was found last, and nothing that it would go on with."""
        self._keep(END, found or {}, {"value": value, "layers": self.layers})
        if self.folder is not None:
            (self.folder / STATES).unlink(missing_ok=True)

    def drop(self) -> None:
        """Of the pass nothing is needed any more."""
        if self.folder is not None and self._made:
            self.dropped = True
            for file in self.folder.glob("*.safetensors"):
                file.unlink(missing_ok=True)

    @property
    def ended(self) -> tuple[Mapping[str, Tensor], Any]:
        """What was found last."""
        found, about = self._found[END]
        return found, about["value"]

    def held(self) -> "Kept":
        """The same with everything in memory: for what another run may remove.

        Raises:
            SecateurError: it is not whole, or needs files of its own.
        """
        assert self.folder is not None, "it is read from a folder"
        files = {file.name for file in self.folder.glob("*.safetensors")}
        if not self.whole or files != set(self._found):
            raise damaged(self.folder)
        self._found = {name: (dict(found), value) for name, (found, value) in self._found.items()}
        self.folder = None
        return self

    def _affordable(self) -> bool:
        return self._spent < max(_FREE, _SHARE * (time.monotonic() - self._started))

    def _keep(self, name: str, found: Mapping[str, Tensor], value: Any) -> None:
        self._found[name] = found, value
        written = self.folder is not None and self._write(name, found, value)
        if self.folder is not None and written:
            self._found[name] = _tensors(self.folder / name), value
        if self._ranks.several:
            self._look_beside(name, value, written)

    def _look_beside(self, name: str, value: Any, written: bool) -> None:
        """What the first rank has written need not be in the memory of the others."""
        file = None if self.folder is None else self.folder / name
        sums = self._ranks.told(
            f"kept {name}", lambda: _metadata(file, "sums") if written and file else None
        )
        if self._beside is None or sums is None:
            return
        with suppress(SecateurError):  # another host, where it is not
            if _metadata(self._beside / name, "sums") == sums:
                self._found[name] = _tensors(self._beside / name), value

    def _write(self, name: str, found: Mapping[str, Tensor], value: Any) -> bool:
        """Whether it could be written; if not, nothing more is."""
        assert self.folder is not None, "there is a folder to write to"
        try:
            write_tensors(self.folder / name, found, value)
        except OSError as error:
            self.forget(str(error.strerror))
            return False
        return True

    def forget(self, why: str) -> None:
        """Keep nothing more on disk."""
        if self.folder is not None:
            note(
                f"what is found from here on cannot be kept in {self.folder.parent} ({why}): cut"
                " short, this pass begins anew"
            )
        self.folder = None

    def _read(self, folder: Path) -> None:
        unfinished = (folder / STATES).is_file() and not (folder / END).is_file()
        if unfinished and not self._ranks.several:
            with suppress(SecateurError):  # of which nothing can be believed
                self.done = _layers_done(folder)
        names = [_layer(index) for index in self.done]
        if (folder / END).is_file():
            about = _metadata(folder / END, "value")
            names = [*map(_layer, about["layers"]), END]
        self._found = {name: (_tensors(folder / name), _value(folder / name)) for name in names}


def _layers_done(folder: Path) -> tuple[int, ...]:
    """The layers that the states are after, if they are whole.

    Raises:
        SecateurError: they are damaged.
    """
    done = _value(folder / STATES)
    for tensor in _tensors(folder / STATES).values():
        assert tensor is not None, "reading it is what counts"
    if not isinstance(done, list) or not all(type(index) is int for index in done):
        raise damaged(folder / STATES)
    if not all((folder / _layer(index)).is_file() for index in done):
        raise damaged(folder)
    return tuple(done)


def _layer(index: int) -> str:
    return f"layer-{index}.safetensors"


def damaged(path: Path) -> SecateurError:
    """What to say of a file that does not hold what was written."""
    return SecateurError(f"{path} is damaged.\nAdd --fresh to make the pass anew.")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], value: Any) -> None:
    """Write one safetensors file, and `value` as JSON into its metadata.

    Tensors that are contiguous are not copied, or from a device in pieces.

    Raises:
        OSError: it cannot be written.
    """
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    total = _total(path)
    sums = {name: [total(one), str(one.dtype), list(one.shape)] for name, one in plain.items()}
    about = json.dumps({"value": value, "sums": sums})
    raw = header(plain, {"about": about, "crc": str(zlib.crc32(about.encode()))})
    partial = path.with_name(f"{PARTIAL}{token()}")
    try:
        with partial.open("wb") as file:
            file.write(raw)
            for tensor in plain.values():
                for piece in _pieces(tensor):
                    file.write(piece)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a safetensors file that holds `tensors` one after the other."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    about: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        about[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(about).encode()
    text += b" " * (-(8 + len(text)) % 64)  # tensors can be mapped
    return len(text).to_bytes(8, "little") + text


def checksum(tensor: Tensor) -> int:
    """The sum of its bytes, eight at a time."""
    data = _bytes(tensor)
    if data.data_ptr() % 8:
        data = data.clone()
    eights = len(data) // 8 * 8
    return int(data[:eights].view(torch.int64).sum()) + int(data[eights:].sum())


def crc(tensor: Tensor) -> int:
    """The CRC of its bytes."""
    total = 0
    for piece in _pieces(tensor):
        total = zlib.crc32(piece, total)
    return total


def _total(path: Path) -> Callable[[Tensor], int]:
    """The checksum of the tensors in a file."""
    return checksum if path.name == STATES else crc


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, on a device or not, some at a time."""
    for piece in _bytes(tensor).split(_PIECE):
        yield piece.cpu().numpy().data


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, each read when it is asked for."""
    sums = _metadata(path, "sums") if path.is_file() else {}

    def read(name: str) -> Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise damaged(path) from error
        if [_total(path)(tensor), str(tensor.dtype), list(tensor.shape)] != sums[name]:
            raise damaged(path)
        return tensor

    return OnDemand(sums, read)


def _value(path: Path) -> Any:
    return _metadata(path, "value")


def _metadata(path: Path, name: str) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if str(zlib.crc32(metadata["about"].encode())) != metadata["crc"]:
            raise damaged(path)
        return parse_json(metadata["about"], lambda why: damaged(path))[name]
    except (OSError, SafetensorError, KeyError) as error:
        raise damaged(path) from error
