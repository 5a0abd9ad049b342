"""The only code that cuts weights: slices by a plan, and repairs what a cut leaves behind."""

from .bias import bias
from .depth import WHOLE, with_consumers
from .knife import PrunedWeights, removed_parameters
from .mask_tuning import mask_tuning
from .normal import Normal, residual_normal
from .refit import Fit, refit, refit_on_held_out
from .repair import REPAIRS, Repair
from .sequential import FITS, TARGETS, ConsumerReport, Repaired, sequential_repair

__all__ = [
    "FITS",
    "REPAIRS",
    "TARGETS",
    "WHOLE",
    "ConsumerReport",
    "Fit",
    "Normal",
    "PrunedWeights",
    "Repair",
    "Repaired",
    "bias",
    "mask_tuning",
    "refit",
    "refit_on_held_out",
    "removed_parameters",
    "residual_normal",
    "sequential_repair",
    "with_consumers",
]
