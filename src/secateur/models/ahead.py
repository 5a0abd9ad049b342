"""What will be needed next is read in a thread while others work: one thing, by one thread.

The thread ends when it has read its thing, so that none is left waiting where a run ends, fails or
is interrupted.
"""

from collections.abc import Callable, Iterable
from threading import Event, Thread

from torch import Tensor

# Gives the tensors of a thing by name, one after the other.
Read = Callable[[], Iterable[tuple[str, Tensor]]]


class Ahead:
    """Things by number, of which one at a time is expected."""

    def __init__(self) -> None:
        self._job: _Job | None = None

    def expect(self, number: int, read: Read) -> None:
        """Begin to read thing `number` in the place of what was expected; `read` runs there."""
        self.leave_off()
        self._job = _Job(read, number)

    def leave_off(self) -> None:
        """Nothing is expected any more."""
        if self._job is not None:
            self._job.leave_off()
        self._job = None

    def take(self, number: int) -> dict[str, Tensor]:
        """The tensors of thing `number`, when they have come; none if it was not expected.

        Raises:
            BaseException: what the reading raised.
        """
        job = self._job
        if job is None or job.number != number:
            return {}
        self._job = None
        return job.tensors()


class _Job:
    """One thing that is read in a thread of its own."""

    def __init__(self, read: Read, number: int) -> None:
        self.number = number
        self._found: dict[str, Tensor] = {}
        self._raised: BaseException | None = None
        self._stop = Event()
        self._thread = Thread(target=self._run, args=(read,), name="secateur-ahead", daemon=True)
        self._thread.start()

    def _run(self, read: Read) -> None:
        try:
            for name, tensor in read():
                if self._stop.is_set():
                    return
                self._found[name] = tensor
        except BaseException as error:  # it is the main thread's to say
            self._raised = error

    def leave_off(self) -> None:
        """Nobody needs it; the thread ends after the tensor that it is at."""
        self._stop.set()
        self._thread.join()

    def tensors(self) -> dict[str, Tensor]:
        self._thread.join()
        if self._raised is not None:
            raise self._raised
        return self._found
