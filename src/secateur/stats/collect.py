"""Collecting statistics of the consumers' inputs: exactly those that are asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import SecateurError
from ..structure import Axis
from .gram import Gram
from .moments import Moments
from .norm import Norm
from .slices import watched
from .stream import Walk, not_finite

A = TypeVar("A", bound="Accumulator")


@runtime_checkable
class Accumulator(Protocol):
    """Sees inputs batch by batch; can be merged, saved, and read again."""

    def update(self, inputs: Tensor) -> None:
        """Add inputs [token, channel]."""

    def merge(self: A, other: A) -> None:
        """Add what another one has seen."""

    def state(self) -> dict[str, Tensor]:
        """Tensors to save."""
        ...


ACCUMULATORS: dict[str, type[Any]] = {"moments": Moments, "norm": Norm, "gram": Gram}

# A statistic by the name that scores use for it: which accumulator holds it, and how to read it.
STATISTICS: dict[str, tuple[str, Callable[[Any], Tensor]]] = {
    "input_mean": ("moments", lambda moments: moments.mean),
    "input_var": ("moments", lambda moments: moments.variance),
    "input_norm": ("norm", lambda norm: norm.norm),
    "input_gram": ("gram", lambda gram: gram.gram),
}


@dataclass
class Tally:
    """The accumulators of one consumer's input, and the gradient terms of the axis by name.

    Experts that share a tensor have one each, `moments#0`, `moments#1`...: each of the tokens that
    came to it.
    """

    accumulators: dict[str, Accumulator] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def update(self, inputs: Tensor, group: int | None = None) -> None:
        """Add the inputs [token, channel] of one batch to every accumulator (of one expert)."""
        for name, accumulator in self.accumulators.items():
            if group is None or name.endswith(f"#{group}"):
                accumulator.update(inputs)

    def __getitem__(self, name: str) -> Tensor:
        """A finished statistic by the name in `STATISTICS` or `GRADIENTS`, fp32.

        Experts come one after the other.
        """
        if name in self.gradients:
            return self.gradients[name]
        holder, read = STATISTICS[name]
        if holder in self.accumulators:
            return read(self.accumulators[holder]).float()
        groups = [
            read(accumulator).float()
            for key, accumulator in self.accumulators.items()
            if key.startswith(f"{holder}#")
        ]
        return torch.cat(groups) if groups[0].dim() == 1 else torch.block_diag(*groups)

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Tensors to save, by holder."""
        states = {name: accumulator.state() for name, accumulator in self.accumulators.items()}
        return {**states, "gradients": self.gradients}


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
            own.gradients |= tally.gradients

    def merge(self, other: "Statistics") -> None:
        """Add what another process has seen of the same axes.

        Raises:
            SecateurError: there are gradient terms, which are no sums over windows.
        """
        if any(tally.gradients for tally in (*self.tallies.values(), *other.tallies.values())):
            raise SecateurError("Gradient terms of two passes do not add up; collect them in one.")
        for axis, tally in self.tallies.items():
            for name, accumulator in tally.accumulators.items():
                accumulator.merge(other[axis].accumulators[name])

    def save(self, path: Path) -> None:
        """Write all accumulators and gradient terms to one safetensors file."""
        save_file(
            {
                f"{axis}/{name}/{key}": tensor.contiguous()
                for axis, tally in self.tallies.items()
                for name, state in tally.states().items()
                for key, tensor in state.items()
            },
            path,
        )

    @classmethod
    def read(cls, path: Path) -> "Statistics":
        """Read what `save` wrote."""
        states: dict[tuple[str, str], dict[str, Tensor]] = {}
        with safe_open(path, framework="pt") as file:
            for full in file.keys():  # noqa: SIM118 (not a dict)
                axis, name, key = full.split("/")
                states.setdefault((axis, name), {})[key] = file.get_tensor(full)
        statistics = cls()
        for (axis, name), state in states.items():
            tally = statistics.tallies.setdefault(axis, Tally())
            if name == "gradients":
                tally.gradients = state
            else:
                kind = ACCUMULATORS[name.partition("#")[0]]
                tally.accumulators[name] = kind.from_state(state)
        return statistics


def collect(walk: Walk, axes: Sequence[Axis], needs: Iterable[str]) -> Statistics:
    """Walk the layers once and collect the statistics `needs` of every axis' consumer input.

    Raises:
        SecateurError: an activation is not finite.
    """
    holders = sorted({STATISTICS[name][0] for name in needs})
    statistics = Statistics()
    if not holders:
        return statistics
    states = walk.embed()
    for step in walk.layers(stage="statistics"):
        here = [axis for axis in axes if axis.layer == step.index]
        with _observed(step.module, here, holders) as tallies:
            step.run(states)
        statistics.tallies.update(tallies)
    return statistics


@contextmanager
def _observed(
    layer: nn.Module, axes: Sequence[Axis], holders: Sequence[str]
) -> Iterator[Mapping[str, Tally]]:
    """Hook the consumers of `axes`; the hooks are gone afterwards, on errors too."""
    tallies: dict[str, Tally] = {}
    hooks = []
    slices: dict[Tensor, Callable[[int, Tensor], None]] = {}
    for axis in axes:
        module = find(layer, axis.consumer.module, axis.layer)
        tallies[axis.name] = tally = Tally()
        if axis.consumer.parameter == "weight":
            hooks.append(module.register_forward_pre_hook(_observer(axis, tally, holders)))
        else:
            slices[getattr(module, axis.consumer.parameter)] = _expert(axis, tally, holders)
    try:
        with watched(slices):
            yield tallies
    finally:
        for hook in hooks:
            hook.remove()


def _expert(axis: Axis, tally: Tally, holders: Sequence[str]) -> Callable[[int, Tensor], None]:
    for holder in holders:
        for group in range(axis.groups):
            empty = ACCUMULATORS[holder].empty(axis.units // axis.groups)
            tally.accumulators[f"{holder}#{group}"] = empty

    def observe(group: int, inputs: Tensor) -> None:
        inputs = inputs.detach().flatten(0, -2)
        if not torch.isfinite(inputs).all():
            raise not_finite(f"the input of expert {group} of {axis.consumer.tensor}", inputs.dtype)
        tally.update(inputs, group)

    return observe


def _observer(axis: Axis, tally: Tally, holders: Sequence[str]) -> Callable[..., None]:
    def observe(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs = args[0].detach().flatten(0, -2)
        if not torch.isfinite(inputs).all():
            raise not_finite(f"the input of {axis.consumer.module}", inputs.dtype)
        for holder in holders:
            if holder not in tally.accumulators:
                tally.accumulators[holder] = ACCUMULATORS[holder].empty(inputs.shape[-1])
        tally.update(inputs)

    return observe


def find(layer: nn.Module, module: str, index: int) -> nn.Module:
    """A module inside its layer, from its path in the model (`...layers.3.mlp.down_proj`)."""
    return layer.get_submodule(module.partition(f".{index}.")[2])
