"""Log-likelihoods of continuations, through the same loop over layers as everything else.

    log p(continuation | context) = sum_t log p(token t | context, continuation before t)

Each context with its continuation is one sequence, cut on the left to what the model reads at once,
its last token predicted but not read (that is how the harness has it). One walk serves all:

- a sequence that another one begins with is not run: its positions are in the other (so a query
  with choices of one token each is run once);
- sequences are padded on the right, which no position before looks at, to one of four lengths an
  octave, so that about a tenth is padding;
- the head sees each position once, and only those before a token of a continuation.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..checkpoint import Kept, Store
from ..device_memory import sent
from ..errors import SecateurError
from ..progress import track
from ..stats import Activations, LayerSource, Walk
from ..stats.activations import MEMORY_LIMIT
from ..stats.blocks import in_cache
from ..stats.finite import not_finite
from ..stats.loss import in_pieces
from .states import last_states

# A context and its continuation, as token ids.
Request = tuple[Sequence[int], Sequence[int]]

# The shortest length that sequences are padded to.
_SHORTEST = 16


@dataclass(frozen=True, slots=True)
class LogLikelihood:
    """Of a continuation (nats), and whether each of its tokens is the likeliest one."""

    value: float
    greedy: bool


def log_likelihoods(
    source: LayerSource,
    requests: Sequence[Request],
    *,
    context: int,
    at_once: int,
    limit: int = MEMORY_LIMIT,
    store: Store | None = None,
    stage: str = "likelihoods",
) -> list[LogLikelihood]:
    """One for each context and continuation, in their order.

    The model reads `context` tokens at once; `at_once` tokens go through a layer together. What was
    found is kept in `store`.

    Raises:
        SecateurError: a context is empty, a continuation is longer than the model reads at once, or
            an activation is not finite.
    """
    if not requests:
        return []
    sets = _sets(requests, context)
    walks = [
        Walk(
            source,
            one.tokens,
            batch=max(1, at_once // one.tokens.shape[1]),
            limit=limit // len(sets),
            store=store,
        )
        for one in sets
    ]
    kept = [walk.kept("likelihood", places=one.hash) for walk, one in zip(walks, sets, strict=True)]
    left = [number for number, one in enumerate(kept) if not one.whole]
    if left:
        states = last_states([walks[n] for n in left], [kept[n] for n in left], stage)
        parts = [
            (number, windows, hidden)
            for number, hidden in zip(left, states, strict=True)
            for windows in walks[number].batches
        ]
        told = {number: (_nothing(sets[number])) for number in left}
        with source.back() as logits_of:
            for number, windows, hidden in track(parts, f"{stage}: head", len(parts), "batch"):
                _tell(told[number], sets[number], walks[number], windows, hidden, logits_of)
        for number in left:
            _end(kept[number], told[number], walks[number])
    return _put_together(requests, sets, kept)


@dataclass(frozen=True)
class _Set:
    """Sequences of one length [sequence, token], and the tokens that are asked for.

    Entry e asks, of sequence `row[e]` after position `position[e]`, for token `target[e]`, which is
    one of request `request[e]`. Entries are in the order of rows and positions.
    """

    tokens: Int64[Tensor, "sequence token"]
    row: Int64[Tensor, " entry"]
    position: Int64[Tensor, " entry"]
    target: Int64[Tensor, " entry"]
    request: Int64[Tensor, " entry"]

    @property
    def hash(self) -> str:
        """What is asked, in short."""
        asked = torch.stack([self.row, self.position, self.target])
        return hashlib.sha256(asked.numpy().tobytes()).hexdigest()


def _sets(requests: Sequence[Request], context: int) -> list[_Set]:
    """The sequences to run, by padded length."""
    read, wanted = [], []
    for before, after in requests:
        if not before or not after or len(after) > context:
            raise SecateurError(
                f"A continuation of {len(after)} tokens after {len(before)} cannot be scored: the"
                f" model reads {context} tokens at once, and neither part may be empty."
            )
        sequence = (*before, *after)[-(context + 1) :]
        read.append(sequence[:-1])
        wanted.append(sequence[len(sequence) - len(after) :])
    held = _held_by(read)
    lengths: dict[int, list[tuple[int, ...]]] = {}
    for sequence in sorted(set(held.values())):
        lengths.setdefault(padded_length(len(sequence), context), []).append(sequence)
    return [_set(length, lengths[length], read, wanted, held) for length in sorted(lengths)]


def _held_by(sequences: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """For each sequence a longest one of those that begin with it.

    In alphabetical order what begins with a sequence comes right after it.
    """
    held: dict[tuple[int, ...], tuple[int, ...]] = {}
    following: tuple[int, ...] = ()
    for sequence in sorted(set(sequences), reverse=True):
        begins = following[: len(sequence)] == sequence
        held[sequence] = held[following] if begins else sequence
        following = sequence
    return held


def padded_length(length: int, context: int) -> int:
    """What a sequence of `length` tokens is padded to: 16, 20, 24, 28, 32, 40, 48, 56, 64 ..."""
    step = max(1 << max(length - 1, _SHORTEST).bit_length() - 3, 1)
    return min(max(-(-length // step) * step, _SHORTEST), max(context, length))


def _set(
    length: int,
    sequences: Sequence[tuple[int, ...]],
    read: Sequence[tuple[int, ...]],
    wanted: Sequence[tuple[int, ...]],
    held: dict[tuple[int, ...], tuple[int, ...]],
) -> _Set:
    rows = {sequence: row for row, sequence in enumerate(sequences)}
    tokens = torch.tensor([[*one, *[one[-1]] * (length - len(one))] for one in sequences])
    entries = sorted(
        (rows[held[sequence]], len(sequence) - len(targets) + place, target, request)
        for request, (sequence, targets) in enumerate(zip(read, wanted, strict=True))
        if held[sequence] in rows
        for place, target in enumerate(targets)
    )
    columns = torch.tensor(entries, dtype=torch.int64).view(-1, 4).unbind(dim=1)
    return _Set(tokens, *(column.contiguous() for column in columns))


# Of each entry the log-probability, and whether the token is the likeliest.
_Told = tuple[Tensor, Tensor]


def _nothing(one: _Set) -> _Told:
    count = len(one.row)
    return torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.bool)


def _tell(
    told: _Told,
    one: _Set,
    walk: Walk,
    windows: slice,
    hidden: Activations,
    logits_of: Callable[[Tensor], Tensor],
) -> None:
    """Fill in the entries of some windows."""
    bounds = torch.tensor([windows.start, windows.stop])
    own = slice(*torch.searchsorted(one.row, bounds).tolist())
    if own.start == own.stop:
        return
    place = (one.row[own] - windows.start) * one.tokens.shape[1] + one.position[own]
    places, at = place.unique_consecutive(return_inverse=True)
    device = walk.source.device
    chosen = hidden[windows].to(device).flatten(0, 1)[sent(places, device)]
    values, greedy = _of_places(logits_of, chosen, sent(at, device), sent(one.target[own], device))
    told[0][own], told[1][own] = values.cpu().double(), greedy.cpu()


def _of_places(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "place hidden"],
    at: Int64[Tensor, " entry"],
    target: Int64[Tensor, " entry"],
) -> tuple[Float[Tensor, " entry"], Bool[Tensor, " entry"]]:
    """Log-probability of each target at its place (fp32), and whether it is the likeliest.

    `at` ascends.
    """
    values, greedy = [], []
    for places, _, logits in in_pieces(logits_of, hidden):
        bounds = torch.tensor([places.start, places.stop], device=at.device)
        own = slice(*torch.searchsorted(at, bounds).tolist())
        rows = at[own] - places.start
        norms = torch.cat([part.float().logsumexp(dim=-1) for part in in_cache(logits)])
        values.append(logits[rows, target[own]].float() - norms[rows])
        greedy.append(logits.argmax(dim=-1)[rows] == target[own])
    return torch.cat(values), torch.cat(greedy)


def _end(kept: Kept, told: _Told, walk: Walk) -> None:
    if not torch.isfinite(told[0]).all():
        raise not_finite("the logits (the output of the head)", walk.source.dtype)
    kept.end({"values": told[0], "greedy": told[1].to(torch.uint8)})


def _put_together(
    requests: Sequence[Any], sets: Sequence[_Set], kept: Sequence[Kept]
) -> list[LogLikelihood]:
    sums = torch.zeros(len(requests), dtype=torch.float64)
    missed = torch.zeros(len(requests), dtype=torch.int64)
    for one, found in zip(sets, kept, strict=True):
        told = found.ended[0]
        sums.index_add_(0, one.request, told["values"])
        missed.index_add_(0, one.request, 1 - told["greedy"].long())
    return [
        LogLikelihood(value, not wrong)
        for value, wrong in zip(sums.tolist(), missed.tolist(), strict=True)
    ]
