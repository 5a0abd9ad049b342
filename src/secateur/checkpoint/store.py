"""A store of passes: a folder that holds what walks over layers found, each under a key.

    STORE/statistics-0123456789ab-cdef01234567/      one pass: see `kept`
        about.json    everything that it depends on: what the name is a hash of
        lock          held by the run that makes or reads it

The first hash is of the walk (weights, tokens, arithmetic, code), the second of what was asked on
it, so that a run finds what others asked on the same walk. A pass whose lock another run holds is
made in memory; of those that nobody holds, the oldest go when all are larger than the limit.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import SecateurError
from ..parsing import parse_json, read_text
from ..progress import note
from ..ranks import Ranks, this
from .kept import END, PARTIAL, Kept
from .lock import locked

GIB = 20.0
_ABOUT, _LOCK = "about.json", "lock"
_NAME = re.compile(r"[a-z0-9-]+-[0-9a-f]{12}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Pass:
    """A pass in a store: its folder, what it depends on, whether it is whole, and its last use."""

    folder: Path
    about: Mapping[str, Any]
    whole: bool
    bytes: int
    used: float

    @property
    def kind(self) -> str:
        """What was looked for on the way."""
        return self.folder.name[: -len("-0123456789ab-0123456789ab")].replace("-", " ")


class Store:
    """Passes in `folder`, which is made when the first is; `gib` GiB of them stay.

    With `fresh` nothing that is there is looked at, and it goes as far as it is made anew.
    Leave it (`with`) to let others have the passes. Of several ranks the first alone writes in it.
    """

    def __init__(self, folder: Path, *, gib: float = GIB, fresh: bool = False) -> None:
        self.folder, self._limit, self._fresh = folder, gib * 2**30, fresh
        self._open: dict[str, Kept] = {}
        self._locks = ExitStack()
        self._told: set[str] = set()
        self._seconds = 0.0

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._locks.close()
        if not this().first:
            return
        for name, kept in self._open.items():
            if kept.dropped:
                _removed(self.folder / name)
        self._seconds = self.seconds
        self._open.clear()
        self._bound()

    def kept(
        self, kind: str, walk: Mapping[str, Any], asked: Mapping[str, Any], of: str = ""
    ) -> Kept:
        """The pass of a kind over a walk, with what an earlier run found of it.

        `of` is what people call the model.
        """
        about = {"kind": kind, "of": of, "walk": dict(walk), "asked": dict(asked)}
        name = f"{_stem(kind, walk)}-{digest(asked)[:12]}"
        if this().several:
            return self._of_all(this(), name, about)
        return self._own(name, about)

    def _of_all(self, ranks: Ranks, name: str, about: Mapping[str, Any]) -> Kept:
        """What the first rank has of a pass, if the others see the same; else nothing for all."""
        own = self._own(name, about) if ranks.first else None
        whole = ranks.told(f"pass {name}", lambda: own is not None and own.whole)
        if own is None:
            own = self._first_ones(self.folder / name, self._open.get(name), whole, ranks)
        if not all(ranks.each(f"pass {name}", own.whole == whole)):
            self._tell(f"not all ranks see {self.folder}: passes are made anew")
            own = Kept(ranks=ranks)
        self._open[name] = own
        return own

    def _first_ones(self, folder: Path, known: Kept | None, whole: bool, ranks: Ranks) -> Kept:
        """A pass of the first rank, as another one sees it."""
        if not whole:
            return Kept(ranks=ranks, beside=folder)
        if known is not None and known.whole:
            return known
        with suppress(SecateurError):
            return Kept(folder, made=False, ranks=ranks)
        return Kept(ranks=ranks)

    def _own(self, name: str, about: Mapping[str, Any]) -> Kept:
        """A pass of this process."""
        kind = about["kind"]
        if name not in self._open:
            self._open[name] = self._opened(self.folder / name, about)
        elif self._open[name].dropped or not self._open[name].whole:
            # dropped, or interrupted in this process: what is on disk counts
            folder = self._open[name].folder
            none = Kept(ranks=this())
            self._open[name] = none if folder is None else self._read(folder, kind)
        return self._open[name]

    def earlier(self, kind: str, walk: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Kept]]:
        """The whole passes of a kind over a walk: what was asked, and what was found."""
        stem = _stem(kind, walk)
        there = this().told(f"passes {stem}", lambda: self._asked(stem))
        found = [(asked, self.kept(kind, walk, asked)) for asked in there]
        return [(asked, kept) for asked, kept in found if kept.whole]

    def _asked(self, stem: str) -> list[Mapping[str, Any]]:
        """What was asked by the passes of a kind over a walk."""
        found = []
        for folder in sorted(self.folder.glob(f"{stem}-*")):
            if self._fresh and folder.name not in self._open:
                continue
            with suppress(SecateurError):  # damaged: as if it were not there
                asked = _about(folder)["asked"]
                if folder.name == f"{stem}-{digest(asked)[:12]}":  # it is what it says
                    found.append(asked)
        return found

    def passes(self) -> list[Pass]:
        """What is there, the latest used first."""
        found = []
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            with suppress(OSError):
                if folder.is_symlink() or not _NAME.fullmatch(folder.name):
                    continue
                about, used = _about_or_none(folder), folder.stat().st_mtime
                size = sum(file.stat().st_size for file in folder.iterdir())
                found.append(Pass(folder, about, (folder / END).is_file(), size, used))
        return sorted(found, key=lambda one: -one.used)

    def clean(self) -> int:
        """Remove all that nobody holds; how many bytes that were."""
        passes = self.passes()
        freed = sum(one.bytes for one in passes if _removed(one.folder))
        if passes:
            with suppress(OSError):  # not empty
                self.folder.rmdir()
        return freed

    @property
    def seconds(self) -> float:
        """How long the passes took that can be gone on with; those of earlier runs: for ever."""
        return self._seconds + sum(kept.seconds for kept in self._open.values())

    def _opened(self, folder: Path, about: Mapping[str, Any]) -> Kept:
        try:
            str(folder).encode()  # what safetensors opens has a name in UTF-8
            if folder.is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            folder.mkdir(parents=True, exist_ok=True)
            self._locks.enter_context(locked(folder / _LOCK, folder))
            if self._fresh:
                _emptied(folder)
            _say_what(folder, about)
            return self._read(folder, about["kind"])
        except (OSError, UnicodeEncodeError) as error:
            why = getattr(error, "strerror", None) or "its name is not UTF-8"
            self._tell(f"passes cannot be kept in {self.folder} ({why})")
            return Kept(ranks=this())
        except SecateurError:  # another run holds it
            return Kept(ranks=this()) if self._fresh else self._others(folder, about["kind"])

    def _read(self, folder: Path, kind: str) -> Kept:
        """What an earlier run kept of a pass that is ours now."""
        try:
            kept = Kept(folder, ranks=this())
        except SecateurError:
            self._tell(f"what an earlier run kept of the {kind} is damaged: made anew")
            _emptied(folder)
            return Kept(folder, ranks=this())
        if kept.whole:
            self._tell(f"{kind}: as an earlier run found it (--fresh looks again)")
        return kept

    def _others(self, folder: Path, kind: str) -> Kept:
        """What another run has made of a pass, or one of our own in memory while it still does."""
        with suppress(SecateurError):
            return Kept(folder, made=False, ranks=this()).held()
        self._tell(f"another run makes the same pass ({kind}): this one keeps none")
        return Kept(ranks=this())

    def _tell(self, message: str) -> None:
        """Once is enough: a comparison has many passes of a kind."""
        if message not in self._told:
            self._told.add(message)
            note(message)

    def _bound(self) -> None:
        """Remove what the limit has no room for beside passes that were used later."""
        left = self._limit
        for one in self.passes():
            if one.bytes <= left:
                left -= one.bytes
            else:
                _removed(one.folder)


def digest(value: Any) -> str:
    """A hash of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def code_version() -> str:
    """A hash of the package and what it computes with: another release may find something else."""
    root = Path(__file__).parent.parent
    parts = [file.read_bytes() for file in sorted(root.rglob("*.py"))]
    parts += [version(name).encode() for name in ("torch", "transformers")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _stem(kind: str, walk: Mapping[str, Any]) -> str:
    return f"{kind.replace(' ', '-')}-{digest(walk)[:12]}"


def _about(folder: Path) -> Mapping[str, Any]:
    """What a pass depends on.

    Raises:
        SecateurError: the folder holds none.
    """
    file = folder / _ABOUT
    if folder.is_symlink():  # what lies there is not ours
        raise SecateurError(f"{folder} is a link.\nRemove it.")
    unsound = SecateurError(f"{file} is damaged.\nRemove {folder}.")
    if not file.is_file():  # a pipe would never end
        raise unsound
    about = parse_json(read_text(file), lambda why: unsound)
    if not isinstance(about, dict) or not isinstance(about.get("asked"), dict):
        raise unsound
    return about


def _about_or_none(folder: Path) -> Mapping[str, Any]:
    try:
        return _about(folder)
    except SecateurError:
        return {}


def _say_what(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what a pass depends on, if that does not stand there; it was used now."""
    if _about_or_none(folder) != about:
        partial = folder / f"{PARTIAL}about"
        partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / _ABOUT)
    os.utime(folder)


def _emptied(folder: Path) -> None:
    """Remove what a pass kept, and nothing else that may lie there."""
    for file in (*folder.glob("*.safetensors"), *folder.glob(f"{PARTIAL}*")):
        file.unlink()


def _removed(folder: Path) -> bool:
    """Remove a pass, if nobody holds it; what tells what it is goes last."""
    with suppress(SecateurError, OSError), locked(folder / _LOCK, folder):
        _emptied(folder)
        (folder / _ABOUT).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()
