"""Collecting statistics of the consumers' inputs: exactly those that are asked for."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..checkpoint import Kept
from ..ranks import Ranks
from ..structure import Axis
from .finite import Finite
from .gram import Gram
from .moments import Moments
from .norm import Norm
from .slices import watched
from .spread import Spread, Update, weighing
from .stream import LayerStep, Walk


@runtime_checkable
class Accumulator(Protocol):
    """Sees inputs batch by batch; what it has seen can be kept as tensors."""

    def update(self, inputs: Tensor) -> None:
        """Add inputs [token, channel]."""

    def of_all(self, ranks: Ranks) -> "Accumulator":
        """What all ranks have seen."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep."""
        ...


ACCUMULATORS: dict[str, type[Any]] = {
    "moments": Moments,
    "norm": Norm,
    "gram": Gram,
    "spread": Spread,
}
# Those that are told, beside a linear's inputs, how much each token counts.
WEIGHED = ("spread",)

# A statistic by the name that scores use for it: which accumulator holds it, and how to read it.
STATISTICS: dict[str, tuple[str, Callable[[Any], Tensor]]] = {
    "input_mean": ("moments", lambda moments: moments.mean),
    "input_var": ("moments", lambda moments: moments.variance),
    "input_norm": ("norm", lambda norm: norm.norm),
    "input_gram": ("gram", lambda gram: gram.gram),
    "input_spread": ("spread", lambda spread: spread.spread),
}


@dataclass
class Tally:
    """The accumulators of one consumer's input, and the gradient terms of the axis by name.

    Experts that share a tensor have one each, `moments#0`, `moments#1`...: each of the tokens that
    came to it.
    """

    accumulators: dict[str, Accumulator] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)

    def update(self, inputs: Tensor, group: int) -> None:
        """Add the inputs [token, channel] of one batch to every accumulator of one expert."""
        for name, accumulator in self.accumulators.items():
            if name.endswith(f"#{group}"):
                accumulator.update(inputs)

    def of_all(self, ranks: Ranks) -> "Tally":
        """The same with what all ranks have seen in the accumulators."""
        for name in sorted(self.accumulators):
            self.accumulators[name] = self.accumulators[name].of_all(ranks)
        return self

    def __getitem__(self, name: str) -> Tensor:
        """A finished statistic by the name in `STATISTICS` or `GRADIENTS`, fp32 and on the CPU.

        Experts come one after the other; `NAME#2` is that of the third alone.
        """
        if name in self.terms:
            return self.terms[name]
        name, _, group = name.partition("#")
        holder, read = STATISTICS[name]
        if group:
            return read(self.accumulators[f"{holder}#{group}"]).float().cpu()
        if holder in self.accumulators:
            return read(self.accumulators[holder]).float().cpu()
        groups = [
            read(accumulator).float().cpu()
            for key, accumulator in self.accumulators.items()
            if key.startswith(f"{holder}#")
        ]
        return torch.cat(groups) if groups[0].dim() == 1 else torch.block_diag(*groups)

    def states(self) -> dict[str, Tensor]:
        """Tensors to keep, by `HOLDER/TENSOR`, or the name of a gradient term."""
        states = {
            f"{holder}/{name}": tensor
            for holder, accumulator in self.accumulators.items()
            for name, tensor in accumulator.state().items()
        }
        return {**states, **self.terms}

    @classmethod
    def of(cls, states: Mapping[str, Tensor]) -> "Tally":
        """What `states` gave, as a tally again."""
        held: dict[str, dict[str, Tensor]] = {}
        for name, tensor in states.items():
            holder, within, part = name.partition("/")
            if within:
                held.setdefault(holder, {})[part] = tensor
        return cls(
            {
                holder: ACCUMULATORS[holder.partition("#")[0]].from_state(state)
                for holder, state in held.items()
            },
            {name: tensor for name, tensor in states.items() if "/" not in name},
        )


@dataclass
class Statistics:
    """The tallies of all axes, by axis name."""

    tallies: dict[str, Tally] = field(default_factory=dict)

    def __getitem__(self, axis: str) -> Tally:
        return self.tallies[axis]

    def include(self, other: "Statistics") -> None:
        """Take over what another pass has collected of other names."""
        for axis, tally in other.tallies.items():
            own = self.tallies.setdefault(axis, Tally())
            own.accumulators |= tally.accumulators
            own.terms |= tally.terms

    @classmethod
    def of(cls, kept: Kept, axes: Sequence[Axis], needs: Collection[str]) -> "Statistics":
        """What a pass has found of `axes` and `needs` (holders and terms)."""
        names = {axis.name for axis in axes}
        found: dict[str, dict[str, Tensor]] = {}
        for index in kept.layers:
            tensors = kept.found(index)
            for full in tensors:
                axis, _, name = full.partition("/")
                if axis in names and name.partition("/")[0].partition("#")[0] in needs:
                    found.setdefault(axis, {})[name] = tensors[full]
        return cls({axis: Tally.of(states) for axis, states in found.items()})


@dataclass(frozen=True)
class Reduction:
    """What is made of the statistics `needs` of an axis while its layer is there."""

    needs: tuple[str, ...]
    make: Callable[[Axis, Tally], Tensor]


# A pass over some axes that collects some needs, and keeps what it finds.
Look = Callable[[Sequence[Axis], list[str]], Kept]


def collect(
    walk: Walk,
    axes: Sequence[Axis],
    needs: Iterable[str],
    *,
    reduced: Mapping[str, Reduction] | None = None,
) -> Statistics:
    """Walk the layers once and collect the statistics `needs` of every axis' consumer input.

    `reduced` are terms made of statistics that are too large to be kept, by names that say what
    they depend on: they are made in their layer, and what they are made of goes with it. What
    earlier passes of the store have found is not looked for again.

    Raises:
        SecateurError: an activation is not finite.
    """
    reduced = reduced or {}
    holders = {STATISTICS[name][0] for name in needs}

    def look(axes: Sequence[Axis], missing: list[str]) -> Kept:
        kept = walk.kept("statistics", needs=missing, axes=[axis.name for axis in axes])
        if not kept.whole:
            own = {name: reduced[name] for name in missing if name in reduced}
            _walk(walk, axes, [name for name in missing if name not in reduced], own, kept)
        return kept

    return what_is_missing(walk, "statistics", axes, {*holders, *reduced}, look)


def what_is_missing(
    walk: Walk, kind: str, axes: Sequence[Axis], needs: Collection[str], look: Look
) -> Statistics:
    """What earlier passes over a walk found of `axes` and `needs`, and a `look` for the rest."""
    found = Statistics()
    names = {axis.name for axis in axes}
    left = set(needs)
    for asked, kept in walk.earlier(kind):
        if names <= set(asked["axes"]) and (there := left & set(asked["needs"])):
            found.include(Statistics.of(kept, axes, there))
            left -= there
    if left and axes:
        found.include(Statistics.of(look(axes, sorted(left)), axes, left))
    return found


def _walk(
    walk: Walk,
    axes: Sequence[Axis],
    holders: Sequence[str],
    reduced: Mapping[str, Reduction],
    kept: Kept,
) -> None:
    """The pass: what every layer gives is kept as it is passed."""
    of_reduced = {STATISTICS[name][0] for one in reduced.values() for name in one.needs}
    seen = sorted({*holders, *of_reduced})
    walk = walk.shared()
    states = walk.embed(kept)
    for step in walk.layers(kept, {"hidden": states}, stage="statistics"):
        here = [axis for axis in axes if axis.layer == step.index]
        with _observed(step, here, seen) as tallies:
            step.run(states)
        step.found = partial(_found, walk.ranks, here, tallies, holders, reduced)
    kept.end()


def _found(
    ranks: Ranks,
    axes: Sequence[Axis],
    tallies: dict[str, Tally],
    holders: Sequence[str],
    reduced: Mapping[str, Reduction],
) -> dict[str, Tensor]:
    """What is kept of a layer; one tally after the other goes."""
    return {
        f"{axis.name}/{name}": tensor
        for axis in axes
        for name, tensor in _kept_of(
            axis, tallies.pop(axis.name).of_all(ranks), holders, reduced
        ).items()
    }


def _kept_of(
    axis: Axis, tally: Tally, holders: Sequence[str], reduced: Mapping[str, Reduction]
) -> dict[str, Tensor]:
    """What is kept of an axis: its accumulators, and what is made of those that are not."""
    made = {name: reduction.make(axis, tally) for name, reduction in reduced.items()}
    tally.accumulators = {
        name: one for name, one in tally.accumulators.items() if name.partition("#")[0] in holders
    }
    return {**tally.states(), **made}


@contextmanager
def _observed(
    step: LayerStep, axes: Sequence[Axis], holders: Sequence[str]
) -> Iterator[dict[str, Tally]]:
    """Hook the consumers of `axes`; the hooks are gone afterwards, on errors too."""
    tallies: dict[str, Tally] = {}
    hooks = []
    slices: dict[Tensor, Callable[[int, Tensor], None]] = {}
    readers: dict[nn.Module, list[Tally]] = {}
    plain = [holder for holder in holders if holder not in WEIGHED]
    weighed = [holder for holder in holders if holder in WEIGHED]
    for axis in axes:
        module = find(step.module, axis.consumer.module, axis.layer)
        tallies[axis.name] = tally = Tally()
        if axis.consumer.linear:
            # even one that no token of this rank passes has something to add to the others'
            width = module.get_parameter("weight").shape[axis.consumer.dim]
            tally.accumulators = {name: ACCUMULATORS[name].empty(width) for name in holders}
            readers.setdefault(module, []).append(tally)
            observer = _observer(axis, tally, plain, step.finite)
            hooks.append(module.register_forward_pre_hook(observer))
        else:
            observer = _expert(axis, tally, holders, step.finite)
            slices[getattr(module, axis.consumer.parameter)] = observer
    try:
        updates = {module: _weigher(own, weighed) for module, own in readers.items()}
        with watched(slices), weighing(step.module, updates if weighed else {}):
            yield tallies
    finally:
        for hook in hooks:
            hook.remove()


def _expert(
    axis: Axis, tally: Tally, holders: Sequence[str], finite: Finite
) -> Callable[[int, Tensor], None]:
    for holder in holders:
        for group in range(axis.groups):
            empty = ACCUMULATORS[holder].empty(axis.units // axis.groups)
            tally.accumulators[f"{holder}#{group}"] = empty

    def observe(group: int, inputs: Tensor) -> None:
        inputs = inputs.detach().flatten(0, -2)
        finite.see(f"the input of expert {group} of {axis.consumer.tensor}", inputs)
        tally.update(inputs, group)

    return observe


def _weigher(tallies: Sequence[Tally], holders: Sequence[str]) -> Update:
    def update(inputs: Tensor, weights: Tensor | None) -> None:
        for tally, holder in itertools.product(tallies, holders):
            accumulator: Any = tally.accumulators[holder]
            accumulator.update(inputs, weights)

    return update


def _observer(
    axis: Axis, tally: Tally, holders: Sequence[str], finite: Finite
) -> Callable[..., None]:
    def observe(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs = args[0].detach().flatten(0, -2)
        finite.see(f"the input of {axis.consumer.module}", inputs)
        for holder in holders:
            tally.accumulators[holder].update(inputs)

    return observe


def find(layer: nn.Module, module: str, index: int) -> nn.Module:
    """A module inside its layer, from its path in the model (`...layers.3.mlp.down_proj`)."""
    return layer.get_submodule(module.partition(f".{index}.")[2])
