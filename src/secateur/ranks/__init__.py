"""Several processes that share one run: `this` rank, and what all of them do together."""

from .alone import ALONE, Ranks, by_first, joined_as, this
