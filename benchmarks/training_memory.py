"""The memory that each process of a training takes at most, from its first step to its last.

    torchrun --standalone --nproc-per-node 2 benchmarks/training_memory.py recover MODEL --shard ...

The words after the file are those of `secateur recover`. It is the peak of the whole process,
Python and its libraries among it, read from Linux, which forgets the peak before; what the model
took while it was read is told beside it. glibc keeps what was freed unless
MALLOC_MMAP_THRESHOLD_=262144 and MALLOC_TRIM_THRESHOLD_=1048576 are set: without them it is what
the system sees, with them what the training needs.
"""

import os
import sys
from pathlib import Path
from typing import Any

from secateur.recovery import Trainer
from secateur_command import main

run = Trainer.run


def status(key: str) -> float:
    """GiB that Linux tells of this process: VmRSS (now) or VmHWM (at most)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 2**20


def measured(self: Any) -> Any:
    """A training, and its peak."""
    before = status("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    began = status("VmRSS")
    outcome = run(self)
    rank = os.environ.get("RANK", "0")
    print(
        f"rank {rank}: {before:.2f} GiB at most before the training, {began:.2f} as it begins,"
        f" {status('VmHWM'):.2f} at most in it",
        file=sys.stderr,
    )
    return outcome


Trainer.run = measured  # type: ignore[method-assign]
main()
