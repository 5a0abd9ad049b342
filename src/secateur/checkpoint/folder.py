"""Folders that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import SecateurError

# What a folder must hold before --force may replace it: never a home folder by a slip of the hand.
_OURS = ("config.json", "plan.json")


@contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write into; rename it to `path` on success.

    On any error, an interrupt included, the sibling is removed (and the folders made on the way to
    it), and `path` is as it was. If `path` is a link, what it points to is written.

    Raises:
        SecateurError: `path` exists and `force` is not set (or it is no folder of ours),
            the place is not writable, the disk is full.
    """
    try:
        path = path.resolve()
        _refuse_existing(path, force)
        missing = [folder for folder in path.parents if not folder.exists()]
    except OSError as error:
        raise _not_writable(path.parent, error) from error
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
        except OSError as error:
            raise _not_writable(path.parent, error) from error
        yield partial
        _swap(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise SecateurError(
                f"No space left while writing {path}; nothing was kept. Free some, or choose"
                " another --out."
            ) from error
        if str(error.filename).startswith(str(partial)):
            raise _not_writable(path.parent, error) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in missing:
            with suppress(OSError):  # not empty: there is a result in it
                folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise SecateurError(f"Cannot write {path}: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _refuse_existing(path: Path, force: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not force:
        raise SecateurError(f"{path} exists. Choose another --out, or add --force to replace it.")
    if not path.is_dir() or not any((path / name).is_file() for name in _OURS):
        raise SecateurError(
            f"{path} is not a model folder, so --force will not replace it. Choose another --out."
        )


def _swap(partial: Path, path: Path) -> None:
    if not path.exists():
        partial.rename(path)
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    try:
        path.rename(old)
        partial.rename(path)
    finally:
        if not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _not_writable(folder: Path, error: OSError) -> SecateurError:
    return SecateurError(f"Cannot write to {folder}: {error.strerror}. Choose another --out.")
