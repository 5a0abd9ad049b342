"""The last step of a run: what is whole gets its name. A kill at any point loses nothing.

A whole result is called `.NAME.ready-INODE`, or `.NAME.replace-INODE` where it takes the place of
another; whatever happens then, the next run there ends what was begun (`tidy`).
"""

import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import SecateurError
from .ours import RECOVERY, foreign, known, written_by_us
from .place import Place
from .renaming import exchange, rename_new, token
from .store import Store

# What makes a folder a result comes last and goes first, the first of these at the very end.
_LAST = ("config.json", "plan.json", "comparison.json")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def appear(place: Place, partial: Path, *, replaced: int | None, training: bool) -> None:
    """Give the whole result `partial` its name; `replaced` is the inode of what was there before.

    Raises:
        SecateurError: there is something else by now; the result is kept and named.
    """
    with _undisturbed():
        kind = "ready" if replaced is None else "replace"
        whole = place.hidden(kind, str(partial.stat().st_ino))
        partial.rename(whole)
        if training:
            place.end_trainings()
        _forget(place)
        if replaced is not None and not _is(place.path, replaced):
            _keep(place, whole, "changed")
        _end(place, whole)


def tidy(place: Place) -> bool:
    """End what killed runs had begun, and remove what they left; the lock must be held.

    Gives whether a result of theirs has its name now.

    Raises:
        SecateurError: a result of a killed run cannot have its name; it is kept and named.
    """
    ended = False
    with _undisturbed(late=True):
        for whole in (*place.left("replace"), *place.left("ready")):
            if _replaces(place, whole) and not _is(whole, int(_mark(whole))):
                _remove(whole)  # exchanged already: the old one
            else:
                if (whole / RECOVERY).is_file():  # killed before the state of its training went
                    place.end_trainings()
                _forget(place)
                _end(place, whole)
                ended = True
        for old in place.left("old"):
            if not place.inside and not os.path.lexists(place.path):
                old.rename(place.path)
            else:
                _remove(old)
        for entry in (*place.left("partial"), *place.partial_states):
            _remove(entry)
    return ended


def _end(place: Place, whole: Path) -> None:
    replaces = _replaces(place, whole)
    try:
        if place.inside:
            _fill(place, whole, replaces)
        elif replaces and os.path.lexists(place.path):
            _replace(place, whole)
        else:
            os.rename(whole, place.path)  # noqa: PTH104 (onto nothing, or an empty folder)
    except OSError as error:
        there = error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)
        _keep(place, whole, "appeared" if there else f"cannot be written ({error.strerror})")


def _replace(place: Place, whole: Path) -> None:
    """Put `whole` in the place of the folder of ours that is there, in one step where possible."""
    if not _replaceable(place):
        _keep(place, whole, "changed")
    old = place.hidden("old", token())
    if exchange(whole, place.path):
        whole.rename(old)
    else:
        _replace_in_two(place.path, whole, old)
    if foreign(old) is None:
        _remove(old)
        return
    kept = _visible(place)  # put there while we looked away
    old.rename(kept)
    raise SecateurError(
        f"{place.path} is written. The folder that it replaced holds {foreign(kept)!r} by now, and"
        f" is kept as {kept}."
    )


def _replace_in_two(path: Path, whole: Path, old: Path) -> None:
    path.rename(old)
    try:
        whole.rename(path)
    except OSError:
        old.rename(path)
        raise


def _fill(place: Place, whole: Path, replaces: bool) -> None:
    """Move the result up into the folder that stays, what makes it one at the very end."""
    if replaces:
        if not _replaceable(place):
            _keep(place, whole, "changed")
        whole = _emptied(place, whole)
    entries = sorted(whole.iterdir(), key=_rank)
    for entry in entries:
        if os.path.lexists(place.path / entry.name):
            _keep(place, whole, "changed")
    for entry in entries:
        rename_new(entry, place.path / entry.name)
    whole.rmdir()
    for old in place.left("old"):
        _remove(old)


def _emptied(place: Place, whole: Path) -> Path:
    """Move the old result away, what makes it one first; then nothing is to be replaced."""
    old = place.hidden("old", token())
    old.mkdir()
    own = place.own
    entries = [entry for entry in place.path.iterdir() if entry not in own and known(entry)]
    for entry in sorted(entries, key=_rank, reverse=True):
        _moved(entry, old / entry.name)
    ready = place.hidden("ready", _mark(whole))
    whole.rename(ready)
    return ready


def _rank(entry: Path) -> int:
    return len(_LAST) - _LAST.index(entry.name) if entry.name in _LAST else 0


def _moved(entry: Path, target: Path) -> None:
    """Rename; a folder of a layer below can only be emptied."""
    try:
        entry.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV or not entry.is_dir():
            raise
        target.mkdir()
        for one in entry.iterdir():
            one.rename(target / one.name)
        entry.rmdir()


def _replaceable(place: Place) -> bool:
    """Whether only what we wrote is there, or what is left of it after a kill."""
    begun = place.inside and bool(place.left("old"))
    own = place.own if place.inside else ()
    return (begun or written_by_us(place.path)) and foreign(place.path, own) is None


def _keep(place: Place, whole: Path, what: str) -> None:
    """The work is done and its place is not ours: give it another name, and say so."""
    kept = _visible(place)
    try:
        rename_new(whole, kept)
    except OSError:
        kept = whole
    raise SecateurError(
        f"{place.path} {what} while this ran, and was left as it is.\n"
        f"The result is whole, in {kept}: move it where you want it."
    )


def _visible(place: Place) -> Path:
    hidden = place.hidden("result", token())
    return hidden.with_name(hidden.name[1:])


def _replaces(place: Place, whole: Path) -> bool:
    return whole == place.hidden("replace", _mark(whole))


def _mark(whole: Path) -> str:
    return whole.name.rpartition("-")[2]


def _is(path: Path, inode: int) -> bool:
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False


def _forget(place: Place) -> None:
    """The passes of a run that is done go; what somebody else put among them stays."""
    Store(place.store).clean()
    with suppress(OSError):  # not there, or not empty
        place.store.rmdir()


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


@contextmanager
def _undisturbed(*, late: bool = False) -> Iterator[None]:
    """Signals wait: the few renames of an end are over in a moment.

    At the end of a run there is nothing left to interrupt; elsewhere they come `late`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = {one: signal.getsignal(one) for one in _SIGNALS}
    for one, handler in before.items():
        if callable(handler):
            signal.signal(one, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        for one, handler in before.items():
            if callable(handler):
                signal.signal(one, handler)
    if waiting and late:
        raise KeyboardInterrupt
