"""What timed benchmarks share: a clock that begins with the first stage, spreads, a neighbour."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import secateur
from secateur.progress import Quiet

# Seconds by the clock and of the processor.
Time = tuple[float, float]

RATIO = 0.2
_NEIGHBOUR = """
import os
import numpy
numbers = numpy.ones(2**27, dtype=numpy.uint8)
parent = os.getppid()
while os.getppid() == parent:  # it goes with whoever started it, killed or not
    numbers[: 2**26] = numbers[2**26 :]
"""


class Clock(Quiet):
    """Knows when the first stage began."""

    def __init__(self) -> None:
        self.began: Time | None = None

    def track(self, items: Iterable[Any], stage: str, total: int, unit: str) -> Iterator[Any]:
        """Note the time, once."""
        self.began = self.began or now()
        yield from items

    @classmethod
    def of(cls, run: Callable[[Quiet], Any]) -> Time:
        """Seconds from the first stage of `run` to its end."""
        clock = cls()
        run(clock)
        return since(clock.began or now())


def machine() -> str:
    """What computes."""
    processor = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return f"{processor}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def now() -> Time:
    """The clocks."""
    return time.perf_counter(), time.process_time()


def since(began: Time) -> Time:
    """Seconds that have passed."""
    return time.perf_counter() - began[0], time.process_time() - began[1]


def planned(folder: str | Path, tokens: Tensor, clock: Quiet, **settings: Any) -> None:
    """A plan for tokens [window, token], and nothing else."""
    secateur.prune(
        folder,
        ratio=RATIO,
        calibration=tokens,
        evaluate="none",
        dry_run=True,
        progress=clock,
        **settings,
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    ordered = sorted(values)
    return {"median": ordered[len(ordered) // 2], "least": ordered[0], "most": ordered[-1]}


def continued(out: Path | None, measured: dict[str, Any]) -> dict[str, Any]:
    """What `out` holds already, or `measured` with no `rows` yet; it must be of the same.

    Raises:
        SystemExit: the file is of something else.
    """
    if out is None or not out.is_file():
        return {**measured, "rows": {}}
    found: dict[str, Any] = json.loads(out.read_text())
    if {**found, "rows": {}} != {**measured, "rows": {}}:
        raise SystemExit(f"{out} is of another model, machine or setting; give another --out.")
    return found


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that copies memory without end."""
    with subprocess.Popen([sys.executable, "-c", _NEIGHBOUR]) as process:
        try:
            yield
        finally:
            process.kill()
