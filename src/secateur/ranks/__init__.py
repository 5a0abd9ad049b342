"""Several processes that share one run: `this` rank, and what all of them do together."""

from .alone import ALONE, Ranks, alone, by_first, joined_as, this
