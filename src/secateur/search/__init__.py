"""Structure search: scores and a budget decide which units go."""

from .budget import Limits, check_budget, removable
from .modes import SEARCHES, Search, search
from .removal import Removal, remove_lowest
from .standardise import channel_sum, standardised

__all__ = [
    "SEARCHES",
    "Limits",
    "Removal",
    "Search",
    "channel_sum",
    "check_budget",
    "removable",
    "remove_lowest",
    "search",
    "standardised",
]
