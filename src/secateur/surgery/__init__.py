"""The only code that cuts weights: slices by a plan, and repairs what a cut leaves behind."""

from .bias import bias
from .depth import WHOLE, with_consumers
from .knife import pruned_view, removed_parameters
from .mask_tuning import mask_tuning
from .normal import Normal
from .refit import Fit, refit, refit_on_held_out
from .repair import REPAIRS, Repair, repair
from .sequential import TARGETS, ConsumerReport, Repaired, sequential_repair

__all__ = [
    "REPAIRS",
    "TARGETS",
    "WHOLE",
    "ConsumerReport",
    "Fit",
    "Normal",
    "Repair",
    "Repaired",
    "bias",
    "mask_tuning",
    "pruned_view",
    "refit",
    "refit_on_held_out",
    "removed_parameters",
    "repair",
    "sequential_repair",
    "with_consumers",
]
