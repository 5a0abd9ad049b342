"""Perplexity over non-overlapping windows, through the same loop over layers as everything else.

    exp( sum of -log p(token | tokens before it in the window) / predicted tokens )

Each window of T tokens predicts T - 1. Where every window begins with a beginning-of-text token of
its own (`--bos each`), that token is never what is predicted, wherever it stands; the token after
it is. The pruning papers use T = 128, everybody else 2048; the
numbers differ by a factor of two, so both are reported.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..checkpoint import Kept, Store
from ..device_memory import sent
from ..errors import SecateurError
from ..stats import Activations, LayerSource, Walk
from ..stats.activations import MEMORY_LIMIT
from ..stats.finite import not_finite
from ..stats.loss import each_loss
from ..stats.stream import Way, side_by_side

WINDOWS = (128, 2048)


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity per token, the window it was taken with, and over how many predicted tokens."""

    window: int
    value: float
    tokens: int


def window_lengths(context: int) -> tuple[int, ...]:
    """The standard windows, cut down to what a model of `context` tokens allows."""
    return tuple(dict.fromkeys(min(window, context) for window in WINDOWS))


def perplexity(
    source: LayerSource,
    tokens: Int64[Tensor, "window token"],
    *,
    batch: int,
    limit: int = MEMORY_LIMIT,
    begin: Sequence[int] = (),
    store: Store | None = None,
    stage: str = "perplexity",
) -> Perplexity:
    """Perplexity of the model behind `source` on `tokens`; only one layer is in memory at a time.

    The tokens `begin`, with which every window begins, are not to be predicted. What was found is
    kept in `store`, if there is one.

    Raises:
        SecateurError: no windows, or an activation is not finite.
    """
    options: dict[str, Any] = {"limit": limit, "begin": begin, "store": store, "stage": stage}
    (found,) = perplexities(source, [tokens], [batch], **options)
    return found


def perplexities(
    source: LayerSource,
    sets: Sequence[Int64[Tensor, "_ _"]],
    batches: Sequence[int],
    *,
    limit: int = MEMORY_LIMIT,
    begin: Sequence[int] = (),
    store: Store | None = None,
    stage: str = "perplexity",
) -> list[Perplexity]:
    """The same on several sets of windows, of which every layer that is read sees all.

    `batches` windows of each go at once; the sets share `limit`.

    Raises:
        SecateurError: as `perplexity`.
    """
    asked = [
        _Asked.of(Walk(source, tokens, batch=batch, limit=limit // len(sets), store=store), begin)
        for tokens, batch in zip(sets, batches, strict=True)
    ]
    left = [one for one in asked if not one.kept.whole]
    if left:
        ways = [Way(o.walk, o.kept, {"hidden": o.walk.embed(o.kept)}) for o in left]
        for steps in side_by_side(ways, range(len(source)), stage=stage):
            for way, step in steps:
                step.run(way.states["hidden"])
        with source.back() as logits_of:
            for one, way in zip(left, ways, strict=True):
                one.kept.end(value=one.summed(logits_of, way.states["hidden"]))
    return [one.perplexity() for one in asked]


@dataclass(frozen=True)
class _Asked:
    """One set of windows: which tokens are `predicted`, and the pass that asks."""

    walk: Walk
    predicted: Bool[Tensor, "window token"]
    kept: Kept

    @classmethod
    def of(cls, walk: Walk, begin: Sequence[int]) -> "_Asked":
        tokens = walk.tokens
        if not len(tokens) or tokens.shape[1] < 2:
            raise SecateurError("Perplexity needs at least one window of two tokens.")
        predicted = ~torch.isin(tokens[:, 1:], torch.tensor(begin, dtype=tokens.dtype))
        if not predicted.any():
            raise SecateurError("Perplexity needs a token to predict; all windows are BOS alone.")
        return cls(walk, predicted, walk.kept("perplexity", begin=list(begin)))

    def summed(self, logits_of: Callable[[Tensor], Tensor], states: Activations) -> float:
        """The sum of -log p over the tokens that are to be predicted."""
        device = self.walk.source.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        for windows in self.walk.batches:
            told = self.predicted[windows]
            if not told.any():
                continue
            chosen = sent(told.flatten().nonzero().flatten(), device)
            hidden = states[windows].to(device)[:, :-1].flatten(0, 1)[chosen]
            losses = each_loss(logits_of, hidden, self.walk.tokens[windows][:, 1:][told])
            total += losses.double().sum()
        if not torch.isfinite(total):
            raise not_finite("the logits (the output of the head)", self.walk.source.dtype)
        return total.item()

    def perplexity(self) -> Perplexity:
        """What the whole pass found."""
        count = int(self.predicted.sum())
        mean = self.kept.ended[1] / count
        return Perplexity(self.walk.tokens.shape[1], math.exp(min(mean, 700.0)), count)
