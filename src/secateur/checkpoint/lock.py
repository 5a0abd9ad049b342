"""One run at a time on one place. The system takes the lock back when its holder dies."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SecateurError

# File systems that lock nothing (some network ones): then nothing can be refused.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def locked(file: Path, place: Path) -> Iterator[None]:
    """Hold the lock `file`, which stands for writing `place`; the file is gone afterwards.

    Raises:
        SecateurError: another run holds it.
        OSError: the file cannot be made.
    """
    held = _acquired(file, place)
    try:
        yield
    finally:
        try:
            file.unlink(missing_ok=True)  # while it is held: nobody has locked another file there
        finally:
            os.close(held)


def _acquired(file: Path, place: Path) -> int:
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)  # a run that failed may just remove it
        try:
            held = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue
        try:
            _lock(held, place)
            if _still_there(file, held):
                return held
        except BaseException:
            os.close(held)
            raise
        os.close(held)  # its last holder removed it between our open and our lock


def _lock(held: int, place: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SecateurError(
            f"Another run is writing {place}.\nWait for it, or choose another --out."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _still_there(file: Path, held: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(held))
    except FileNotFoundError:
        return False
