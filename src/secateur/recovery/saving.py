"""When the state of a training is written, and what of it: a few per cent of the time at most.

Of several ranks the first writes, when it is worth its time there; the others hand it their parts.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import token
from ..errors import SecateurError
from ..progress import note
from ..ranks import this
from .state import State, best_file, best_files, gather, like, write_state

# Saving takes at most this share of the time, once it has taken a second in all.
_SHARE, _FREE = 0.03, 1.0
# Bytes in a second that a disk is thought to take before the first save has shown it.
_SPEED = 2e9


class Saving:
    """Writes states to the file `path`, if there is one, as long as it can be written."""

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        self._started, self._spent, self._speed = time.monotonic(), 0.0, _SPEED
        self._mark: str | None = None
        self._changed = True

    def best_is(self, mark: str) -> None:
        """The best parameters are in a file already: those of a state that was read."""
        self._mark, self._changed = mark, False

    def best_changed(self) -> None:
        """There are better parameters than those that were written."""
        self._changed = True

    def save(
        self, state: Mapping[str, Tensor], best: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Write a state and, where it changed, the best, if that is worth its time."""
        written = [state, best] if self._changed else [state]
        size = sum(tensor.nbytes for tensors in written for tensor in like(tensors).values())
        if not this().told("saving", lambda: self._path is not None and self._affordable(size)):
            return
        started = time.monotonic()
        try:
            self._write(state, best, values)
        except SecateurError as error:  # a full disk, say: what is trained may fit elsewhere
            note(f"{error} Training goes on; cut short, it begins anew.")
            self._path = None
            return
        took = time.monotonic() - started
        self._spent += took
        self._speed = size / max(took, 1e-6)

    def _write(
        self, state: Mapping[str, Tensor], best: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        if self._changed:
            mark = token()
            self._file("the best", State(best, {}), mark)
            self._mark, self._changed = mark, False
        assert self._mark is not None, "a best was written, or read"
        self._file("the state", State(state, {**values, "best": self._mark}))
        if self._path is None:
            return
        for other in best_files(self._path):
            if other != best_file(self._path, self._mark):
                other.unlink(missing_ok=True)

    def _file(self, what: str, state: State, mark: str | None = None) -> None:
        """Write one file, on the first rank; `mark` is that of the best."""

        def write() -> None:
            assert self._path is not None, "there is a file to write to"
            place = [best_file(self._path, mark)] if mark else []
            write_state(self._path, state, self._fingerprint, *place)

        if not this().first:
            gather(state.tensors, state.tensors)
        this().told(what, write)

    def _affordable(self, size: int) -> bool:
        elapsed = time.monotonic() - self._started
        return self._spent + size / self._speed <= max(_FREE, _SHARE * elapsed)
