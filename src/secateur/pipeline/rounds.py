"""The rounds of a search that goes in such: of so many minutes, or so many, to be done again."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from ..config import PruneConfig
from ..errors import SecateurError
from ..progress import note, status, track
from ..ranks import this
from ..search import Rounds
from .estimate import split_windows


def rounds_of(
    config: PruneConfig,
    tokens: Int64[Tensor, "window token"] | None,
    clock: Callable[[], float] = time.monotonic,
) -> Rounds | None:
    """Those that the settings have time for, and that are shown; None if the search has none."""
    if not config.in_rounds or tokens is None:
        return None
    ranks = this()
    _, asking = split_windows(tokens, config.fusion_name, config.search_name)
    return Rounds(
        config.search_minutes,
        config.search_rounds,
        asking.numel(),
        lambda: ranks.told("clock", clock),
        lambda numbers: track(numbers, "search", len(numbers), "round"),
        status,
    )


def settled(config: PruneConfig, rounds: Rounds | None) -> PruneConfig:
    """The settings that repeat what the clock has decided: so many rounds."""
    if rounds is None or config.search_minutes is None:
        return config
    return config.model_copy(update={"search_minutes": None, "search_rounds": rounds.done or None})


def rounds_numbers(config: PruneConfig, rounds: Rounds | None) -> dict[str, Any] | None:
    """How far the search came, and what is said of rounds that there was no time for."""
    if rounds is None or not rounds.all:
        return None
    if config.search_minutes is not None and rounds.done < rounds.all:
        note(
            f"{config.search_minutes:g} minutes were time for {rounds.done} of the {rounds.all}"
            f" rounds of the search {config.search_name!r}: it ends with the best so far"
        )
    return {"rounds": rounds.done, "of": rounds.all, "divergence": rounds.divergence}


def check_rounds(config: PruneConfig, ways: Sequence[PruneConfig]) -> None:
    """Make sure that a length given for a search in rounds has one to go with, in some way.

    Raises:
        SecateurError: none of the searches goes in rounds.
    """
    given = next((n for n in ("minutes", "rounds") if getattr(config, f"search_{n}")), None)
    if given is None or any(way.in_rounds for way in ways):
        return
    searches = ", ".join(dict.fromkeys(repr(way.search_name) for way in ways))
    several = len({way.search_name for way in ways}) > 1
    raise SecateurError(
        f"--search-{given} is how long a search in rounds takes, and {searches}"
        f" {'go' if several else 'goes'} in none.\nAdd --search kl, or leave it out."
    )
