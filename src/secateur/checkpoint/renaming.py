"""Renaming that says no instead of replacing, and two names exchanged at once."""

import ctypes
import errno
import os
import secrets
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

_HERE = -100  # AT_FDCWD: paths are what they are
_NEW, _EXCHANGE = 1, 2
# The kernel, the C library or the file system knows nothing of it.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)


def token() -> str:
    """A name that no other process has: process numbers repeat between containers."""
    return secrets.token_hex(4)


def exchange(one: Path, other: Path) -> bool:
    """Exchange what two names stand for, in one step; False where the system cannot."""
    return _renamed(one, other, _EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Rename `source`, which must not replace anything.

    Raises:
        FileExistsError: there is something at `target`.
    """
    if _renamed(source, target, _NEW):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def _renamed(source: Path, target: Path, flag: int) -> bool:
    call = _renameat2()
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


@cache
def _renameat2() -> Callable[..., Any] | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
