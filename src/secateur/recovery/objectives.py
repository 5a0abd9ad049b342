"""What a training step makes smaller: the loss on the next token, or the distance to a teacher.

    next token     -sum log p_S(token t | tokens before it)        over labelled tokens
    full logits    sum_t KL(p_T || p_S)                            over the positions before them
    top k          sum_t sum_{v in top k} p_T log(p_T / p_S) + r_T log(r_T / r_S),
                   r the probability of all other tokens together

Right padding needs no mask: the models are causal, and padded tokens have no label. An objective is
asked for the loss of a batch once, and then for pieces of its places: the logits of all are never
there at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..checkpoint import checksum, damaged
from ..data import token_hash
from ..ranks import Ranks
from ..stats import Activations, Walk
from ..stats.blocks import in_cache
from ..stats.loss import in_pieces
from .batch import Batch
from .halves import Halves
from .picked import picked_logs

_TINY = 1e-9
# Windows of each rank whose predictions are handed round at once.
_ROUND = 64

# Of logits [place, vocabulary] and which of the batch's places they are at: the loss, summed.
PieceLoss = Callable[[Tensor, slice], Tensor]


@runtime_checkable
class Objective(Protocol):
    """A loss summed over the labelled tokens of some examples."""

    def __call__(self, batch: Batch) -> PieceLoss:
        """The loss of any piece of `batch`."""
        ...


def next_token(batch: Batch) -> PieceLoss:
    """Cross-entropy of the labels."""

    def loss(logits: Float[Tensor, "place vocabulary"], piece: slice) -> Tensor:
        return -picked_logs(logits, batch.labels[piece, None]).sum()

    return loss


class FullDistillation:
    """KL to the logits that `teacher` gives anew for every batch: exact, with both in memory."""

    def __init__(self, teacher: Halves) -> None:
        self._teacher = teacher

    def __call__(self, batch: Batch) -> PieceLoss:
        """KL summed over the positions before labelled tokens."""
        with torch.no_grad():
            hidden = self._teacher.hidden(batch.ids).flatten(0, 1)[batch.places]

        def loss(logits: Float[Tensor, "place vocabulary"], piece: slice) -> Tensor:
            with torch.no_grad():
                wanted = self._teacher.logits(hidden[piece])
                target = torch.log_softmax(wanted, dim=-1, dtype=torch.float32)
            ours = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            return torch.nn.functional.kl_div(ours, target, reduction="sum", log_target=True)

        return loss


class CachedDistillation:
    """KL to the `top` likeliest tokens of a teacher that has run once: it is gone by now.

    The cache is 6 bytes a token and entry, in files of the pass, or in memory up to `walk.limit`
    bytes and else in unnamed files. The teacher streams through `walk`, one layer in memory.
    Several ranks share the windows, and each then has what all have found: any example may come to
    any rank. It is asked before the tokens that are `told`; elsewhere it says nothing.

    Raises:
        SecateurError: what an earlier run kept is damaged.
    """

    def __init__(self, walk: Walk, top: int, told: Bool[Tensor, "window token"]) -> None:
        walk = walk.shared()
        count, length = walk.tokens.shape
        shape, third = (count, length - 1, top), walk.limit // 3
        self._pass = walk.kept("teacher", top=top, told=token_hash(told.long()))
        self._tokens = Activations.kept(self._pass, "tokens", shape, torch.int32, 2 * third)
        self._logs = Activations.kept(self._pass, "logs", shape, torch.float16, third)
        if not self._pass.whole:
            self._ask(walk, top, told[:, 1:])
        elif self._pass.ended[1] != self._sums():
            raise damaged(self._pass.folder or Path())

    def _ask(self, walk: Walk, top: int, told: Bool[Tensor, "window place"]) -> None:
        """The pass: what the teacher thinks likeliest at each place that is told."""
        states = walk.embed(self._pass)
        for step in walk.layers(self._pass, {"hidden": states}, stage="teacher"):
            step.run(states)
        with walk.source.back() as logits_of:
            for windows in walk.batches:
                asked, hidden = told[windows], states[windows]
                hidden = hidden[:, :-1][asked.to(hidden.device)]
                if not len(hidden):
                    continue
                found = [
                    torch.log_softmax(own, dim=-1, dtype=torch.float32).topk(top, dim=-1)
                    for _, _, logits in in_pieces(logits_of, hidden)
                    for own in in_cache(logits)
                ]
                logs, tokens = map(torch.cat, zip(*found, strict=True))
                self._tokens.tensor[windows][asked] = tokens.int().cpu()
                self._logs.tensor[windows][asked] = logs.half().cpu()
        if walk.ranks.several:
            self._hand_round(walk.ranks)
        self._pass.end(value=self._sums())

    def _hand_round(self, ranks: Ranks) -> None:
        """Have what the other ranks found of their windows."""
        for kept in (self._tokens.tensor, self._logs.tensor):
            shares = [Ranks(index, ranks.count).share(len(kept)) for index in range(ranks.count)]
            most = max(share.stop - share.start for share in shares)
            for begin in range(0, most, _ROUND):
                parts = [
                    slice(share.start + begin, min(share.start + begin + _ROUND, share.stop))
                    for share in shares
                ]
                found = ranks.gathered("the teacher's", kept[parts[ranks.index]])
                for part in parts:
                    kept[part] = found[: len(kept[part])]
                    found = found[len(kept[part]) :]

    def _sums(self) -> list[int]:
        return [checksum(kept.tensor) for kept in (self._tokens, self._logs)]

    def __call__(self, batch: Batch) -> PieceLoss:
        """KL summed over the positions before labelled tokens."""
        tokens, target = (
            kept.tensor[batch.rows, batch.positions].to(batch.ids.device, non_blocking=True)
            for kept in (self._tokens, self._logs)
        )

        def loss(logits: Float[Tensor, "place vocabulary"], piece: slice) -> Tensor:
            wanted = target[piece].float()
            ours = picked_logs(logits, tokens[piece].long())
            rest, ours_rest = _rest(wanted), _rest(ours)
            kept_part = (wanted.exp() * (wanted - ours)).sum()
            return kept_part + (rest * (rest.log() - ours_rest.log())).sum()

        return loss


def _rest(logs: Float[Tensor, "token top"]) -> Float[Tensor, " token"]:
    """The probability of all tokens that are not listed."""
    return (1 - logs.exp().sum(dim=1)).clamp(min=_TINY)
