"""How far cut models are from the dense one: of many choices of units, candidates, in one pass.

    KL(dense || candidate), a mean over tokens

The consumers of a candidate are fitted at once, by statistics of the dense model (`one_shot`).
A batch holds windows of one candidate. What lies below the first layer that it cuts is the dense
model, which runs once for all, so that one who cuts a late layer costs little. Of several ranks
each takes its part of the candidates.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..checkpoint import Kept, digest
from ..device_memory import sent
from ..ranks import this
from ..stats import LayerStep, Statistics, Walk
from ..stats.collect import find
from ..stats.loss import summed_divergences
from ..stats.stream import hidden_of
from ..stats.substitute import Substitutes, substituted
from ..structure import Axis, Plan
from ..surgery.observe import Consumer
from ..surgery.one_shot import FITTED_BY, one_shot

# Candidates whose last states are at hand at once, beside those of the dense model.
_TOGETHER = 16

Gone = Mapping[Axis, tuple[int, ...]]


def divergences(
    walk: Walk,
    candidates: Sequence[Gone],
    statistics: Statistics,
    fitted_on: Mapping[str, Any] | None = None,
) -> Float[Tensor, " candidate"]:
    """KL of each of `candidates` (units that go, by axis) to the dense model, fp64.

    It is taken on the tokens of `walk`; `statistics` (`FITTED_BY`) are of the dense model, and
    `fitted_on` is what they depend on: the store knows results by it.
    """
    if not candidates:
        return torch.zeros(0, dtype=torch.float64)
    layers = len(walk.source)
    cut = [
        min((a.layer for a, units in one.items() if units), default=layers) for one in candidates
    ]
    order = sorted(range(len(candidates)), key=cut.__getitem__)
    several = walk.like(times=1 + len(candidates))
    gone = [{axis.name: units for axis, units in candidates[i].items() if units} for i in order]
    kept = several.kept("candidates", gone=digest(gone), fitted_on=digest(fitted_on))
    if not kept.whole:
        ordered = [candidates[i] for i in order]
        kept.end(value=_asked_by_ranks(walk, ordered, sorted(cut), statistics, kept))
    found = torch.empty(len(candidates), dtype=torch.float64)
    found[order] = torch.tensor(kept.ended[1], dtype=torch.float64)
    return found / walk.tokens.numel()


def _asked_by_ranks(
    walk: Walk,
    candidates: Sequence[Gone],
    first: Sequence[int],
    statistics: Statistics,
    kept: Kept,
) -> list[float]:
    """What `_asked` gives, of every rank's part of the candidates."""
    ranks = this()
    own = slice(ranks.index, None, ranks.count)
    some, several = candidates[own], walk.like(times=1 + len(candidates[own]))
    found = torch.zeros(len(candidates), dtype=torch.float64)
    found[own] = _asked(several, len(walk.tokens), some, first[own], statistics, kept)
    return ranks.summed("candidates", [found])[0].tolist()


def _asked(
    walk: Walk,
    count: int,
    candidates: Sequence[Gone],
    first: Sequence[int],
    statistics: Statistics,
    kept: Kept,
) -> Float64[Tensor, " candidate"]:
    """The pass: the summed KL of every candidate, `count` windows each."""
    states = walk.embed(kept)
    for step in walk.layers(kept, {"hidden": states}, stage="candidates"):
        for index, layer in enumerate(first):
            if layer == step.index:
                states[(1 + index) * count : (2 + index) * count] = states[:count]
        edits = _edits(step, candidates, statistics)
        for windows, inputs, (args, kwargs) in step.batches(states):
            index = windows.start // count - 1
            if index >= 0 and first[index] > step.index:
                break
            own: dict[Axis, tuple[int, ...]] = {}
            if index >= 0:
                cut = candidates[index].items()
                own = {axis: units for axis, units in cut if units and axis.layer == step.index}
            changed = {
                key: one for axis, units in own.items() for key, one in edits[axis, units].items()
            }
            with substituted(changed), torch.no_grad():
                states[windows] = hidden_of(step.module(inputs, *args, **kwargs))
    sums = torch.zeros(len(candidates), dtype=torch.float64, device=walk.source.device)
    asked = sum(layer < len(walk.source) for layer in first)  # the others cut nothing
    with walk.source.back() as logits_of:
        for windows in (own for own in walk.batches if own.stop <= count):
            for start in range(0, asked, _TOGETHER):
                some = range(start, min(start + _TOGETHER, asked))
                shifts = [(1 + index) * count for index in some]
                cut = [states[slice(windows.start + n, windows.stop + n)] for n in shifts]
                sums[some.start : some.stop] += summed_divergences(logits_of, states[windows], cut)
    return sums.cpu()


def _edits(
    step: LayerStep, candidates: Sequence[Gone], statistics: Statistics
) -> dict[tuple[Axis, tuple[int, ...]], Substitutes]:
    """Parameters of the dense shape for the consumers of this layer without some units."""
    asked: dict[Axis, set[tuple[int, ...]]] = {}
    for one in candidates:
        for axis, units in one.items():
            if units and axis.layer == step.index:
                asked.setdefault(axis, set()).add(units)
    return {
        (axis, units): edit
        for axis, sets in asked.items()
        for chain in _chains(sets)
        for units, edit in zip(chain, _fitted(step, axis, chain, statistics), strict=True)
    }


def _chains(sets: Collection[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """The sets in rows, each of which has all that the one before it has."""
    chains: list[list[tuple[int, ...]]] = []
    for units in sorted(sets, key=lambda own: (len(own), own)):
        chain = next((c for c in chains if set(c[-1]) <= set(units)), None)
        if chain is None:
            chains.append([units])
        else:
            chain.append(units)
    return chains


def _fitted(
    step: LayerStep, axis: Axis, chain: Sequence[tuple[int, ...]], statistics: Statistics
) -> Iterator[Substitutes]:
    member, module = axis.consumer, find(step.module, axis.consumer.module, axis.layer)
    whole = module.get_parameter(member.parameter).detach()
    if not member.linear:  # experts have no bias, and are cut as they are
        for units in chain:
            masked = member.masked(whole, torch.tensor(units))
            yield {(module, member.parameter): torch.nn.Parameter(masked, requires_grad=False)}
        return
    seen: Any = {name: statistics[axis.name][name] for name in FITTED_BY}
    gone = [member.blocks.indices(torch.tensor(units)).flatten() for units in chain]
    turned = whole.float().cpu().movedim(member.dim, 1)
    fits = one_shot(turned, gone, where=member.module, **seen)
    for units, (fitted, added) in zip(chain, fits, strict=True):
        plan = Plan({axis.name: _others(axis, units)}, "", "")
        consumer = Consumer.of(axis, plan, step.module)
        weight, shift, bias = sent(fitted, whole.device), sent(added, whole.device), consumer.bias
        yield consumer.edit(weight, shift if bias is None else bias.float() + shift)


def _others(axis: Axis, units: tuple[int, ...]) -> tuple[int, ...]:
    gone = set(units)
    return tuple(unit for unit in range(axis.units) if unit not in gone)
