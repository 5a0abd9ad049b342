"""Where a result goes: what a typed path stands for, and the hidden names beside it.

`docs/decisions/007-places.md` tells what each name is for.
"""

import errno
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import SecateurError
from .renaming import token

# Our names are hidden ones with a few dozen letters more than the result's.
_LONGEST = 100
# The states of trainings, one after the other.
_TRAININGS = ("training.safetensors", "training-2.safetensors", "training-3.safetensors")
# By kind, what its mark looks like: an inode, or a token.
_KINDS = {
    "ready": r"\d+",
    "replace": r"\d+",
    "old": "[0-9a-f]{8}",
    "partial": "[0-9a-f]{8}",
    **{
        f"{training}.{kind}": "[0-9a-f]{8}"
        for training in _TRAININGS
        for kind in ("partial", "best", "steps")
    },
}


@dataclass(frozen=True)
class Place:
    """A result's `path`, and the folder where its hidden names are: the parent, or `path` itself.

    The second, if the folder `path` is there and cannot be renamed: a mount point, say.
    """

    path: Path
    beside: Path

    @property
    def inside(self) -> bool:
        """Whether the result is moved into a folder that stays where it is."""
        return self.beside == self.path

    def hidden(self, kind: str, mark: str) -> Path:
        """The name for something temporary."""
        return self.beside / f".{_stem(self.path)}.{kind}-{mark}"

    @property
    def prefix(self) -> str:
        """What all our paths begin with."""
        return str(self.beside / f".{_stem(self.path)}.")

    @property
    def lock(self) -> Path:
        """The file that the run which writes here has locked."""
        return self.beside / f".{_stem(self.path)}.lock"

    @property
    def trainings(self) -> list[Path]:
        """The states of unfinished trainings that there may be."""
        return [training_file(self.beside, self.path, which) for which in range(len(_TRAININGS))]

    def end_trainings(self) -> None:
        """Remove states of trainings, with best parameters and numbers of steps beside them."""
        for state in self.trainings:
            state.unlink(missing_ok=True)
        for training, kind in itertools.product(_TRAININGS, ("best", "steps")):
            for entry in self.left(f"{training}.{kind}"):
                entry.unlink(missing_ok=True)

    @property
    def partial_states(self) -> list[Path]:
        """States that were being written."""
        return [entry for training in _TRAININGS for entry in self.left(f"{training}.partial")]

    @property
    def store(self) -> Path:
        """The passes of an unfinished run."""
        return store_folder(self.beside, self.path)

    def left(self, kind: str) -> list[Path]:
        """What other runs of that kind left here: nothing of a result called `NAME.old-2`, say."""
        ours = re.compile(re.escape(f".{_stem(self.path)}.{kind}-") + _KINDS[kind])
        return sorted(entry for entry in self.beside.iterdir() if ours.fullmatch(entry.name))

    @property
    def own(self) -> set[Path]:
        """Everything here that is no part of a result; a new disk has a `lost+found`."""
        kinds = [entry for kind in _KINDS for entry in self.left(kind)]
        return {self.lock, *self.trainings, self.store, self.beside / "lost+found", *kinds}

    def taken(self) -> bool:
        """Whether there is anything at `path` that an empty folder is not."""
        if not os.path.lexists(self.path):
            return False
        if not self.path.is_dir():
            return True
        own = self.own if self.inside else set()
        return any(entry not in own for entry in self.path.iterdir())


def training_file(beside: Path, path: Path, which: int = 0) -> Path:
    """Where the state of a training lies whose result `path` will be; `which` of several."""
    return beside / f".{_stem(path)}.{_TRAININGS[which]}"


def store_folder(beside: Path, path: Path) -> Path:
    """Where the passes of a run are kept whose result `path` will be."""
    return beside / f".{_stem(path)}.store"


def real_path(path: Path) -> Path:
    """The place that a typed path stands for: no link, no `~`, no `..`.

    Raises:
        SecateurError: there can be no new folder or file.
    """
    try:
        found = path.expanduser().resolve()
        here = Path.cwd().resolve()
        _looked_at(found)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, ~nobody, a NUL
        reason = getattr(error, "strerror", None) or error
        raise SecateurError(
            f"Cannot write to {str(path)!r}: {reason}. Choose another --out."
        ) from error
    if found in (here, *here.parents):
        raise SecateurError(
            f"--out {str(path)!r} is the folder you are in, or holds it; expected a new one.\n"
            "Type: --out DIR, with the name that the new folder should have."
        )
    return found


def _looked_at(path: Path) -> None:
    """Raise what the system says of the path itself: too long a name, no permission."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()


def not_writable(folder: Path, error: OSError) -> SecateurError:
    """What a person is told if the system says no."""
    return SecateurError(f"Cannot write to {folder}: {error.strerror}. Choose another --out.")


def renameable(place: Place) -> bool:
    """Whether the folder `place.path` can be renamed; found out by a renaming that cannot succeed.

    The system refuses to rename a folder onto one that is not empty, for that reason if there is
    no other: a mount point, a layer of an image below, a sticky folder of someone else.
    """
    other = place.hidden("partial", token())
    other.mkdir()
    try:
        (other / "occupied").touch()
        os.rename(place.path, other)  # noqa: PTH104 (Path.rename says the same of both)
    except OSError as error:
        return error.errno in (errno.ENOTEMPTY, errno.EEXIST)
    finally:
        shutil.rmtree(other, ignore_errors=True)
    return False


def missing_parents(path: Path) -> Iterator[Path]:
    """The folders on the way to `path` that are not there, the nearest first."""
    for folder in path.parents:
        if folder.exists():
            return
        yield folder


def _stem(path: Path) -> str:
    """The name, or its beginning and a hash where ours would be too long for the system."""
    name = os.fsencode(path.name)
    if len(name) <= _LONGEST:
        return path.name
    start = name[: _LONGEST - 9].decode(errors="ignore")
    return f"{start}~{hashlib.sha256(name).hexdigest()[:8]}"
