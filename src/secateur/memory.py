"""Giving freed memory back to the operating system.

glibc keeps what it freed in its heap, in pieces between small live objects: after a few decoder
layers a process holds hundreds of megabytes that nothing uses (1.22 GB instead of 0.86 GB above the
imports, pruning a 1B model in bf16; `benchmarks/memory.py`). One call a layer gives them back, in
milliseconds.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any


def give_back() -> None:
    """Return free heap pages to the system, where the C library can."""
    _trim()(0)


@cache
def _trim() -> Callable[[int], Any]:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            return trim
    return lambda _: None
