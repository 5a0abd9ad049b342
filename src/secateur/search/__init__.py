"""Structure search: scores and a budget decide which units go."""

from .budget import Limits, check_budget, removable
from .modes import SEARCHES, Mode, Search, search
from .removal import Removal, remove_lowest
from .stability import fluctuation, instability
from .standardise import SCALES, channel_sum, logarithmic, per_parameter, rescaled, standardised

__all__ = [
    "SCALES",
    "SEARCHES",
    "Limits",
    "Mode",
    "Removal",
    "Search",
    "channel_sum",
    "check_budget",
    "fluctuation",
    "instability",
    "logarithmic",
    "per_parameter",
    "removable",
    "remove_lowest",
    "rescaled",
    "search",
    "standardised",
]
