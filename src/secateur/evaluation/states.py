"""Where the layers end: what a head makes predictions of."""

from collections.abc import Sequence

from ..checkpoint import Kept
from ..stats import Activations, Walk
from ..stats.stream import Way, side_by_side


def last_states(walks: Sequence[Walk], kept: Sequence[Kept], stage: str) -> list[Activations]:
    """The hidden states after the last layer of several ways through one source.

    Raises:
        SecateurError: an activation is not finite.
    """
    ways = [
        Way(walk, one, {"hidden": walk.embed(one)}) for walk, one in zip(walks, kept, strict=True)
    ]
    for steps in side_by_side(ways, range(len(walks[0].source)), stage=stage):
        for way, step in steps:
            step.run(way.states["hidden"])
    return [way.states["hidden"] for way in ways]
