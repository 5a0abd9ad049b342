"""Perplexity over non-overlapping windows, through the same loop over layers as everything else.

    exp( sum of -log p(token | tokens before it in the window) / predicted tokens )

Each window of T tokens predicts T - 1. Where every window begins with a beginning-of-text token of
its own (`--bos each`), that token is never what is predicted, wherever it stands; the token after
it is. The pruning papers use T = 128, everybody else 2048; the
numbers differ by a factor of two, so both are reported.

Its standard error is that of the mean loss over windows (`standard_error`), by the first order of
exp: perplexity * error of the mean.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..checkpoint import Kept, Store
from ..device_memory import sent
from ..errors import SecateurError
from ..stats import Activations, LayerSource, Walk
from ..stats.activations import MEMORY_LIMIT
from ..stats.finite import not_finite
from ..stats.loss import each_loss
from .standard_error import mean_over_windows
from .states import last_states

WINDOWS = (128, 2048)
# The exponent of what a float still holds.
_LARGEST = 700.0


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity per token, the window it was taken with, and over how many predicted tokens.

    `error` is its standard error over windows; None if there is but one.
    """

    window: int
    value: float
    tokens: int
    error: float | None = None

    @classmethod
    def of(cls, window: int, sums: Tensor, counts: Tensor) -> "Perplexity":
        """From each window's summed loss [window] and number of predicted tokens [window]."""
        mean = mean_over_windows(sums, counts)
        value = math.exp(min(mean.value, _LARGEST))
        error = None if mean.error is None else value * mean.error
        return cls(window, value, int(counts.sum()), error)

    def to_json(self) -> dict[str, Any]:
        """By name."""
        return {
            "window": self.window,
            "perplexity": self.value,
            "standard_error": self.error,
            "tokens": self.tokens,
        }


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
    how: dict[str, Any] = {"limit": limit // max(len(sets), 1), "store": store}
    asked = [
        _Asked.of(Walk(source, tokens, batch=batch, **how).shared(), begin)
        for tokens, batch in zip(sets, batches, strict=True)
    ]
    left = [one for one in asked if not one.kept.whole]
    if left:
        states = last_states([one.walk for one in left], [one.kept for one in left], stage)
        with source.back() as logits_of:
            for one, hidden in zip(left, states, strict=True):
                one.kept.end({"sums": one.summed(logits_of, hidden)})
    return [one.perplexity() for one in asked]


def predicted(
    tokens: Int64[Tensor, "window token"], begin: Sequence[int]
) -> Bool[Tensor, "window target"]:
    """Which tokens, from the second on, are to be predicted: all but those of `begin`.

    Raises:
        SecateurError: there are none.
    """
    if not len(tokens) or tokens.shape[1] < 2:
        raise SecateurError("Perplexity needs at least one window of two tokens.")
    told = ~torch.isin(tokens[:, 1:], torch.tensor(begin, dtype=tokens.dtype))
    if not told.any():
        raise SecateurError("Perplexity needs a token to predict; all windows are BOS alone.")
    return told


@dataclass(frozen=True)
class _Asked:
    """One set of windows: which tokens are `told` of by the loss, and the pass that asks."""

    walk: Walk
    told: Bool[Tensor, "window target"]
    kept: Kept

    @classmethod
    def of(cls, walk: Walk, begin: Sequence[int]) -> "_Asked":
        told = predicted(walk.tokens, begin)
        return cls(walk, told, walk.kept("perplexity", begin=list(begin)))

    def summed(
        self, logits_of: Callable[[Tensor], Tensor], states: Activations
    ) -> Float64[Tensor, " window"]:
        """The sum of -log p over the tokens that are to be predicted, of each window."""
        device, sums = self.walk.source.device, []
        for windows in self.walk.batches:
            told = self.told[windows]
            chosen = sent(told.flatten().nonzero().flatten(), device)
            hidden = states[windows].to(device)[:, :-1].flatten(0, 1)[chosen]
            targets = self.walk.tokens[windows][:, 1:][told]
            losses = each_loss(logits_of, hidden, targets) if len(targets) else hidden.new_empty(0)
            sums.append(by_window(losses, told))
        return finite_sums(self.walk.ranks.gathered("losses", torch.cat(sums)), self.walk)

    def perplexity(self) -> Perplexity:
        """What the whole pass found."""
        sums = self.kept.ended[0]["sums"]
        return Perplexity.of(self.walk.tokens.shape[1], sums, self.told.sum(dim=1))


def by_window(
    values: Float[Tensor, " place"], told: Bool[Tensor, "window target"]
) -> Float64[Tensor, " window"]:
    """The sum of what was found at the places `told`, in order, of each window; on the CPU."""
    windows = told.nonzero()[:, 0]
    sums = torch.zeros(len(told), dtype=torch.float64)
    return sums.index_add_(0, windows, values.detach().cpu().double())


def finite_sums(sums: Float64[Tensor, "*window"], walk: Walk) -> Float64[Tensor, "*window"]:
    """The same.

    Raises:
        SecateurError: one is not finite.
    """
    if not torch.isfinite(sums).all():
        raise not_finite("the logits (the output of the head)", walk.source.dtype)
    return sums
