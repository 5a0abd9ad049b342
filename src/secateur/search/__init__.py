"""Structure search: scores and a budget decide which units go. One family of searches a file.

To add one, write a function like those of `across_layers.py`, and import its file here.
"""

from . import across_layers, gates, kl, stability, within_layers
from .budget import Limits, Wording, check_budget, removable
from .greedy import one_by_one
from .registry import (
    SEARCHES,
    Choice,
    Divergence,
    Gates,
    Gradient,
    Loss,
    Request,
    Search,
    Units,
    register_search,
)
from .removal import Removal, cost_of, remove_lowest
from .rounds import Rounds
from .run import DivergenceOfUnits, LossOfUnits, check_division, check_search, search
from .stability import fluctuation, instability
from .standardise import SCALES, channel_sum, logarithmic, per_parameter, rescaled, standardised

__all__ = [
    "SCALES",
    "SEARCHES",
    "Choice",
    "Divergence",
    "DivergenceOfUnits",
    "Gates",
    "Gradient",
    "Limits",
    "Loss",
    "LossOfUnits",
    "Removal",
    "Request",
    "Rounds",
    "Search",
    "Units",
    "Wording",
    "across_layers",
    "channel_sum",
    "check_budget",
    "check_division",
    "check_search",
    "cost_of",
    "fluctuation",
    "gates",
    "instability",
    "kl",
    "logarithmic",
    "one_by_one",
    "per_parameter",
    "register_search",
    "removable",
    "remove_lowest",
    "rescaled",
    "search",
    "stability",
    "standardised",
    "within_layers",
]
