"""Perplexity over non-overlapping windows, through the same loop over layers as everything else.

    exp( sum of -log p(token | tokens before it in the window) / predicted tokens )

Each window of T tokens predicts T - 1. Where every window begins with a beginning-of-text token of
its own (`--bos each`), that token is never what is predicted, wherever it stands; the token after
it is. The pruning papers use T = 128, everybody else 2048; the
numbers differ by a factor of two, so both are reported.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..checkpoint import Kept, Store
from ..errors import SecateurError
from ..stats import LayerSource, Walk
from ..stats.activations import MEMORY_LIMIT
from ..stats.finite import not_finite
from ..stats.loss import each_loss

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
    if not len(tokens) or tokens.shape[1] < 2:
        raise SecateurError("Perplexity needs at least one window of two tokens.")
    predicted = ~torch.isin(tokens[:, 1:], torch.tensor(begin, dtype=tokens.dtype))
    count = int(predicted.sum())
    if not count:
        raise SecateurError("Perplexity needs a token to predict; all windows are BOS alone.")
    walk = Walk(source, tokens, batch=batch, limit=limit, store=store)
    kept = walk.kept("perplexity", begin=list(begin))
    if not kept.whole:
        kept.end(value=_summed(walk, predicted, kept, stage))
    mean = kept.ended[1] / count
    return Perplexity(tokens.shape[1], math.exp(min(mean, 700.0)), count)


def _summed(walk: Walk, predicted: Bool[Tensor, "window token"], kept: Kept, stage: str) -> float:
    """The pass: the sum of -log p over the tokens that are to be `predicted`."""
    states = walk.embed(kept)
    for step in walk.layers(kept, {"hidden": states}, stage=stage):
        step.run(states)
    total = torch.zeros((), dtype=torch.float64)
    with walk.source.back() as logits_of:
        for windows in walk.batches:
            told = predicted[windows]
            hidden = states[windows][:, :-1][told]
            total += (
                each_loss(logits_of, hidden, walk.tokens[windows][:, 1:][told]).double().sum().cpu()
            )
    if not torch.isfinite(total):
        raise not_finite("the logits (the output of the head)", walk.source.dtype)
    return total.item()
