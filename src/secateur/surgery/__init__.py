"""The only code that cuts weights: slices by a plan, and repairs what a cut leaves behind."""

from .bias import bias
from .knife import PrunedWeights
from .repair import REPAIRS, Repair

__all__ = ["REPAIRS", "PrunedWeights", "Repair", "bias"]
