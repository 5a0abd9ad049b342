"""Structure search: scores and a budget decide which units go."""

from .budget import Limits, check_budget, removable
from .greedy import one_by_one
from .modes import SEARCHES, Mode, Request, Search, check_division, search
from .removal import Removal, remove_lowest
from .stability import fluctuation, instability
from .standardise import SCALES, channel_sum, logarithmic, per_parameter, rescaled, standardised

__all__ = [
    "SCALES",
    "SEARCHES",
    "Limits",
    "Mode",
    "Removal",
    "Request",
    "Search",
    "channel_sum",
    "check_budget",
    "check_division",
    "fluctuation",
    "instability",
    "logarithmic",
    "one_by_one",
    "per_parameter",
    "removable",
    "remove_lowest",
    "rescaled",
    "search",
    "standardised",
]
