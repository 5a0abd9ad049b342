"""When the state of a training is written, and what of it: a few per cent of the time at most."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import token
from ..errors import SecateurError
from ..progress import note
from .state import State, best_file, best_files, write_state

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
        size = sum(tensor.nbytes for tensors in written for tensor in tensors.values())
        if self._path is None or not self._affordable(size):
            return
        started = time.monotonic()
        try:
            self._write(self._path, state, best, values)
        except SecateurError as error:  # a full disk, say: what is trained may fit elsewhere
            note(f"{error} Training goes on; cut short, it begins anew.")
            self._path = None
            return
        took = time.monotonic() - started
        self._spent += took
        self._speed = size / max(took, 1e-6)

    def _write(
        self,
        path: Path,
        state: Mapping[str, Tensor],
        best: Mapping[str, Tensor],
        values: Mapping[str, Any],
    ) -> None:
        if self._changed:
            mark = token()
            write_state(path, State(best, {}), self._fingerprint, best_file(path, mark))
            self._mark, self._changed = mark, False
        write_state(path, State(state, {**values, "best": self._mark}), self._fingerprint)
        assert self._mark is not None, "a best was written, or read"
        for other in best_files(path):
            if other != best_file(path, self._mark):
                other.unlink(missing_ok=True)

    def _affordable(self, size: int) -> bool:
        elapsed = time.monotonic() - self._started
        return self._spent + size / self._speed <= max(_FREE, _SHARE * elapsed)
