"""Folders and files that appear whole or not at all, and replace nothing they did not mean to."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import SecateurError
from . import appearing
from .lock import locked
from .ours import foreign, written_by_us
from .place import Place, missing_parents, not_writable, real_path, renameable
from .renaming import rename_new, token

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(path: Path, *, force: bool, training: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to write into; it becomes `path` on success.

    On any error, an interrupt included, it is removed (and the folders made on the way to it), and
    `path` is as it was. If `path` is a link, what it points to is written. Whether it can be, is
    found out at once. The state of a `training` goes when the result is whole.

    Raises:
        SecateurError: `path` exists and `force` is not set (or it is no folder of ours, or holds
            anything else), another run is writing it, the place is not writable, the disk is
            full; `path` appeared meanwhile: the result is then kept beside it.
    """
    path = real_path(path)
    with ExitStack() as stack:
        stack.enter_context(_parents(path))
        place = _entered(stack, path, force)
        replaced = path.stat().st_ino if place.taken() else None
        partial = place.hidden("partial", token())
        with _told(place):
            try:
                partial.mkdir()
                yield partial
                appearing.appear(place, partial, replaced=replaced, training=training)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a temporary file to write; it becomes `path` on success, and `path` alone is left.

    Raises:
        SecateurError: `path` is a folder, or exists and `force` is not set, or cannot be written.
    """
    path = real_path(path)
    place = Place(path, path.parent)
    if path.is_dir() or not path.parent.is_dir():
        raise SecateurError(f"{path} is no place for a file. Choose another name.")
    with _told(place), locked(place.lock, path):
        appearing.tidy(place)
        if path.exists() and not force:
            raise SecateurError(
                f"{path} exists. Choose another name, or add --force to replace it."
            )
        partial = place.hidden("partial", token())
        partial.mkdir()
        try:
            written = partial / "file"
            written.touch()
            yield written
            if force:
                written.replace(path)
            else:
                rename_new(written, path)
        except FileExistsError as error:
            raise SecateurError(f"{path} appeared meanwhile, and was left as it is.") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Remove the folders that are made on the way to `path`, if nothing is in them at the end."""
    try:
        missing = list(missing_parents(path))
    except OSError as error:
        raise not_writable(path.parent, error) from error
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # not empty: there is a result in it
                folder.rmdir()


def _entered(stack: ExitStack, path: Path, force: bool) -> Place:
    """The place, locked, tidied and free to be written."""
    outer = Place(path, path.parent)
    try:
        stack.enter_context(locked(outer.lock, path))
        ended = appearing.tidy(outer)
        movable = not path.is_dir() or renameable(outer)
    except OSError as error:
        if not path.is_dir():
            _refuse(outer, force)
            raise not_writable(path.parent, error) from error
        movable = False
    if movable:
        _refuse(outer, force, ended)
        return outer
    inner = Place(path, path)
    try:
        stack.enter_context(locked(inner.lock, path))
        ended = appearing.tidy(inner)
    except OSError as error:
        _refuse(inner, force)
        raise not_writable(path, error) from error
    _refuse(inner, force, ended)
    return inner


def _refuse(place: Place, force: bool, ended: bool = False) -> None:
    path = place.path
    if not place.taken():
        return
    if not force and ended:
        raise SecateurError(
            f"{path} exists, and is whole: a run that was killed had come to its end.\n"
            "Use it, or add --force to make it anew."
        )
    if not written_by_us(path):
        why = " will not replace it" if force else " would not replace it"
        raise SecateurError(
            f"{path} exists and is not a model folder that Secateur wrote, so --force{why}."
            " Choose another --out."
        )
    if not force:
        raise SecateurError(f"{path} exists. Choose another --out, or add --force to replace it.")
    other = foreign(path, place.own if place.inside else ())
    if other is not None:
        raise SecateurError(
            f"{path} holds {other!r}, which Secateur did not write, so --force will not replace it."
            "\nMove it away, or choose another --out."
        )


@contextmanager
def _told(place: Place) -> Iterator[None]:
    """What the system has against the place comes as a message."""
    try:
        yield
    except OSError as error:
        kept = ""
        if states := [state for state in place.trainings if state.is_file()]:
            kept = f" The training so far is in {states[-1]}: the same command goes on."
        if error.errno in _FULL:
            raise SecateurError(
                f"No space left while writing {place.path}; nothing was kept.{kept}\nFree some, or"
                " choose another --out."
            ) from error
        if str(error.filename).startswith(place.prefix):
            raise not_writable(place.beside, error) from error
        raise
