"""From a model to a smaller one: whole runs, and their stages one by one."""

from .benchmarking import Bench, bench
from .calibration import calibration_windows
from .chain import prune_and_recover
from .choice import kept_units
from .compared import Comparison
from .comparing import compare
from .convert import Conversion, convert
from .cutting import added_biases
from .discover import Discovery, discover
from .evaluating import evaluate
from .evaluation_result import Continuation, Evaluation
from .exporting import Exported, export_model
from .held_out import evaluation_text
from .keeping import keeping as keeping_passes
from .look import inspect, look_at, read_plan
from .pruning import apply, prune
from .recovering import Recovery, recover
from .reporting import redraw
from .result import Result
from .scoring import scores
from .sweeping import Sweep, sweep

__all__ = [
    "Bench",
    "Comparison",
    "Continuation",
    "Conversion",
    "Discovery",
    "Evaluation",
    "Exported",
    "Recovery",
    "Result",
    "Sweep",
    "added_biases",
    "apply",
    "bench",
    "calibration_windows",
    "compare",
    "convert",
    "discover",
    "evaluate",
    "evaluation_text",
    "export_model",
    "inspect",
    "keeping_passes",
    "kept_units",
    "look_at",
    "prune",
    "prune_and_recover",
    "read_plan",
    "recover",
    "redraw",
    "scores",
    "sweep",
]
