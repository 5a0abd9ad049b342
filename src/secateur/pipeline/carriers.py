"""Where the shares of a sweep are made: in processes of this machine, or where Ray has room.

A carrier gives the events of a share as they happen, and says what ended a process that did not
come to its end. Several shares may be under way, each in a thread of the process that asks.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

from ..errors import SecateurError
from ..launched import NEEDED
from ..registry import choose
from ..shown import one_line
from .sweep_share import Event, Share

# Bytes from the end of what a process said.
_READ = 20_000


class DiedError(Exception):
    """A process that makes a share came to no end of its own; says how, in one line."""


class Carrier(Protocol):
    """Makes shares elsewhere."""

    workers: int

    def events(self, share: Share) -> Iterator[Event]:
        """What happens, as it does.

        Raises:
            DiedError: the process ended before the share did.
        """
        ...

    def close(self) -> None:
        """End what is still under way."""
        ...


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(workers: int) -> int:
    """How many threads each of so many workers has."""
    return max(1, cores() // workers)


class Processes:
    """A process of this machine for each share, `workers` at once."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._running: list[subprocess.Popen[str]] = []
        self._closed = False
        root = Path(__file__).parent.parent.parent
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {
            "OMP_NUM_THREADS": str(threads(workers)),
            # threads that wait for one another would keep the cores of other workers busy
            **({"OMP_WAIT_POLICY": "PASSIVE"} if workers > 1 else {}),
            # a worker is no rank, whoever has started this process
            **{name: own for name, own in os.environ.items() if name not in NEEDED},
            "PYTHONPATH": os.pathsep.join(paths),
        }

    def events(self, share: Share) -> Iterator[Event]:
        """What happens, as it does.

        Raises:
            DiedError: the process ended before the share did.
        """
        command = [sys.executable, "-P", "-m", "secateur.pipeline.sweep_worker"]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                encoding="utf-8",
                env=self._environment,
            )
            self._running.append(process)
            if self._closed:  # meanwhile
                process.kill()
            assert process.stdin is not None, "it was asked for"
            assert process.stdout is not None, "it was asked for"
            ended = False
            try:
                with suppress(BrokenPipeError):  # it died at once; what it left says why
                    process.stdin.write(json.dumps(share.to_json()) + "\n")
                    process.stdin.flush()
                for line in process.stdout:
                    event = _event(line)
                    ended = ended or "ended" in event
                    yield event
            finally:
                _ended(process)
                self._running.remove(process)
            if not ended:
                raise DiedError(_how(process.returncode, said))

    def close(self) -> None:
        """End what is still under way."""
        self._closed = True
        for process in list(self._running):
            process.kill()


def _event(line: str) -> Event:
    """A line that was whole; of a process that died in the middle of one, nothing."""
    try:
        event: Any = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _ended(process: "subprocess.Popen[str]") -> None:
    """Wait for a process that has said all that it had to say."""
    assert process.stdin is not None, "it was asked for"
    with suppress(OSError):
        process.stdin.close()
    process.wait()
    assert process.stdout is not None, "it was asked for"
    process.stdout.close()


def _how(code: int, said: IO[bytes]) -> str:
    """How a process ended, and the last that it said."""
    name = f"exit code {code}"
    if code < 0:
        with suppress(ValueError):
            name = f"killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            name += ", perhaps by the system, for want of memory"
    last = f": {_last(said)}" if code > 0 else ""
    return f"{name}{last}".rstrip(": ")


def _last(said: IO[bytes]) -> str:
    """The error that a process ended with, or else its last line."""
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - _READ))
    lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    starts = [place for place, line in enumerate(lines) if line.startswith("Traceback (")]
    error = [line for line in lines[starts[-1] + 1 :] if line[0] != " "] if starts else []
    return one_line((error or lines[-1:] or [""])[0])[:300]


CARRIERS = {
    "processes": "Processes of this machine",
    "ray": "A cluster of Ray: its GPUs, or its cores",
}


def check_carrier(on: str) -> None:
    """Whether there is a carrier of that name here.

    Raises:
        SecateurError: an unknown one, or its package is not installed.
    """
    choose("place for workers", on, CARRIERS)
    if on == "ray" and find_spec("ray") is None:
        raise SecateurError('--on ray needs the package ray.\nType: pip install "secateur[ray]"')


def carrier_of(on: str, workers: int | None, *, gpu: bool) -> Carrier:
    """The carrier of that name; Ray is imported for its own alone.

    Raises:
        SecateurError: it does not start.
    """
    if on == "processes":
        return Processes(workers or 1)
    from .on_ray import OnRay

    return OnRay(workers, gpu=gpu)
