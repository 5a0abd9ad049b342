"""How threads of a computation wait for one another: by spinning, or asleep where others are busy.

A thread that spins holds a core. On an idle machine that saves the time of waking up, a tenth of a
pass and more; beside another busy process it is the core that the other threads need, and on two
cores the pass takes twice as long as with threads that sleep. Results are the same. The variable
is read when torch is imported. Whoever wants something else sets it: OMP_WAIT_POLICY=ACTIVE.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

_LOADAVG = Path("/proc/loadavg")
_LOOKS, _BETWEEN = 5, 0.01


def let_threads_sleep_beside_others() -> None:
    """Let waiting threads sleep if others are busy here, unless OMP_WAIT_POLICY is set."""
    if "OMP_WAIT_POLICY" not in os.environ and _others_are_busy():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _others_are_busy() -> bool:
    """Whether others ran on an eighth of the cores at each of some looks; False if nobody says."""
    many = max(1, (os.cpu_count() or 1) // 8)
    with suppress(OSError, ValueError, IndexError):
        for _ in range(_LOOKS):
            time.sleep(_BETWEEN)
            running = int(_LOADAVG.read_text().split()[3].partition("/")[0])
            if running - 1 < many:  # one of them is ours
                return False
        return True
    return False
