"""The streaming pass over decoder layers, and what it can collect on the way."""

from .activations import Activations
from .collect import STATISTICS, Statistics, Tally, collect
from .gram import Gram
from .moments import Moments
from .norm import Norm
from .stream import LayerSource, LayerStep, Walk

__all__ = [
    "STATISTICS",
    "Activations",
    "Gram",
    "LayerSource",
    "LayerStep",
    "Moments",
    "Norm",
    "Statistics",
    "Tally",
    "Walk",
    "collect",
]
