"""What a model costs to run: counts, memory, time, and the widths that engines like or do not.

Each file is a piece of its own; `pipeline.benchmarking` puts them together.
"""

from .count import Counts, counts_of
from .gguf import MIXTURES, FileSize, file_size
from .hardware import natural_multiple, processor
from .memory import cache_bytes, weight_bytes
from .rows import Rows, aligned_shapes, mlp_axes, multiples, rows_of
from .timing import Allowance, Case, Spread, Timed, run_of, timed_case

__all__ = [
    "MIXTURES",
    "Allowance",
    "Case",
    "Counts",
    "FileSize",
    "Rows",
    "Spread",
    "Timed",
    "aligned_shapes",
    "cache_bytes",
    "counts_of",
    "file_size",
    "mlp_axes",
    "multiples",
    "natural_multiple",
    "processor",
    "rows_of",
    "run_of",
    "timed_case",
    "weight_bytes",
]
