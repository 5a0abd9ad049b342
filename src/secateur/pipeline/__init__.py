"""From a model to a smaller one: whole runs, and their stages one by one."""

from .choice import kept_units
from .comparison import compare
from .convert import Conversion, convert
from .discover import Discovery, discover
from .look import evaluate, inspect, look_at, read_plan
from .recovery import prune_and_recover, recover
from .recovery_run import Recovery
from .result import Result
from .run import apply, prune
from .stages import (
    added_biases,
    calibration_windows,
    evaluation_text,
    scores,
    statistics,
)

__all__ = [
    "Conversion",
    "Discovery",
    "Recovery",
    "Result",
    "added_biases",
    "apply",
    "calibration_windows",
    "compare",
    "convert",
    "discover",
    "evaluate",
    "evaluation_text",
    "inspect",
    "kept_units",
    "look_at",
    "prune",
    "prune_and_recover",
    "read_plan",
    "recover",
    "scores",
    "statistics",
]
