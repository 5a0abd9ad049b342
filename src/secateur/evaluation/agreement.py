"""How far a model's predictions are from another's on the tokens that perplexity is taken on.

    KL(p || q) = 1/T sum_t sum_v p_t(v) log( p_t(v) / q_t(v) )
    agreement  = 1/T sum_t [ argmax_v p_t(v) = argmax_v q_t(v) ]

p the predictions of the dense model, q those of the other, t over the predicted tokens of all
windows. Perplexities of both come from the same hidden states; standard errors are over windows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..checkpoint import Store
from ..device_memory import sent
from ..stats import Activations, LayerSource, Walk
from ..stats.activations import MEMORY_LIMIT
from ..stats.loss import in_pieces, token_divergences, token_losses
from .perplexity import Perplexity, by_window, finite_sums, predicted
from .standard_error import Estimate, mean_over_windows
from .states import last_states


@dataclass(frozen=True, slots=True)
class Agreement:
    """KL from the dense model's predictions (nats a token), and the share of tokens of which both
    models find the same one likeliest, over so many predicted tokens of windows of a length.
    """

    window: int
    tokens: int
    divergence: Estimate
    top1: Estimate

    def to_json(self) -> dict[str, Any]:
        """By name."""
        return {
            "window": self.window,
            "kl": self.divergence.to_json(),
            "top1": self.top1.to_json(),
            "tokens": self.tokens,
        }


@dataclass(frozen=True, slots=True)
class Beside:
    """A model beside the dense one on windows of one length."""

    model: Perplexity
    dense: Perplexity
    agreement: Agreement


def beside(
    source: LayerSource,
    dense: LayerSource,
    sets: Sequence[Int64[Tensor, "_ _"]],
    batches: Sequence[int],
    *,
    limit: int = MEMORY_LIMIT,
    begin: Sequence[int] = (),
    store: Store | None = None,
) -> list[Beside]:
    """The model behind `source` beside `dense` on several sets of windows, `batches` at once.

    Every layer of each model is read once. What was found is kept in `store`.

    Raises:
        SecateurError: no windows, or an activation is not finite.
    """
    told = [predicted(tokens, begin) for tokens in sets]
    ours, theirs = (
        [
            Walk(one, tokens, batch=batch, limit=limit // (2 * len(sets)), store=store)
            for tokens, batch in zip(sets, batches, strict=True)
        ]
        for one in (source, dense)
    )
    kept = [
        walk.kept("agreement", begin=list(begin), dense=other.known_by)
        for walk, other in zip(ours, theirs, strict=True)
    ]
    left = [number for number, one in enumerate(kept) if not one.whole]
    if left:
        walks = [theirs[number] for number in left]
        begun = [walk.kept("last states", begin=list(begin)) for walk in walks]
        before = last_states(walks, begun, "the dense model")
        after = last_states([ours[n] for n in left], [kept[n] for n in left], "the model")
        with dense.back() as dense_logits, source.back() as logits:
            for number, *states in zip(left, before, after, strict=True):
                sums = _sums(theirs[number], told[number], (dense_logits, logits), states)
                kept[number].end({"sums": finite_sums(sums, ours[number])})
        for one in begun:
            one.drop()
    return [
        _of(walk.tokens.shape[1], one.ended[0]["sums"], here.sum(dim=1))
        for walk, one, here in zip(ours, kept, told, strict=True)
    ]


def _of(window: int, sums: Float64[Tensor, "4 window"], counts: Int64[Tensor, " window"]) -> Beside:
    ours, theirs, apart, same = sums
    return Beside(
        Perplexity.of(window, ours, counts),
        Perplexity.of(window, theirs, counts),
        Agreement(
            window,
            int(counts.sum()),
            mean_over_windows(apart, counts),
            mean_over_windows(same, counts),
        ),
    )


def _sums(
    walk: Walk,
    told: Bool[Tensor, "window target"],
    heads: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    states: Sequence[Activations],
) -> Float64[Tensor, "4 window"]:
    """Of each window: our loss, the dense model's, the divergence, how many agree."""
    device, sums = walk.source.device, []
    for windows in walk.batches:
        here = told[windows]
        if not here.any():
            sums.append(torch.zeros(4, len(here), dtype=torch.float64))
            continue
        chosen = sent(here.flatten().nonzero().flatten(), device)
        dense, ours = (one[windows].to(device)[:, :-1].flatten(0, 1)[chosen] for one in states)
        targets = sent(walk.tokens[windows][:, 1:][here], device)
        found = _each(heads, dense, ours, targets)
        sums.append(torch.stack([by_window(row, here) for row in found]))
    return torch.cat(sums, dim=1)


def _each(
    heads: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    dense: Float[Tensor, "place hidden"],
    ours: Float[Tensor, "place other"],
    targets: Int64[Tensor, " place"],
) -> Float[Tensor, "4 place"]:
    """The same four of each place, fp32."""
    found = []
    for places, _, wanted in in_pieces(heads[0], dense):
        logits = heads[1](ours[None, places])[0]
        losses = (token_losses(logits, targets[places]), token_losses(wanted, targets[places]))
        same = (logits.argmax(dim=-1) == wanted.argmax(dim=-1)).float()
        found.append(torch.stack([*losses, token_divergences(wanted, logits), same]))
    return torch.cat(found, dim=1)
