"""From ingredients to one score tensor an axis."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import SecateurError
from ..registry import choose
from ..stats import GRADIENTS
from ..stats.fisher import OUTPUT_FISHER
from ..stats.gates import GATES
from ..structure import Axis
from .members import REDUCTIONS
from .registry import Importance

# Statistics that are [channel, channel].
MATRICES = ("input_gram", "input_spread")


@runtime_checkable
class Ingredients(Protocol):
    """Statistics of one axis by name: `secateur.stats.Tally` is one, a dictionary another."""

    def __getitem__(self, name: str, /) -> Tensor: ...


def gradients_needed(importance: Importance) -> tuple[str, ...]:
    """Names of the gradient terms that the pass forward and back must collect for a score."""
    return tuple(name for name in importance.needs if name in GRADIENTS)


def score(
    importance: Importance,
    axis: Axis,
    weight: Tensor | None,
    statistics: Ingredients,
    *,
    seed: int,
    members: str = "sum",
) -> Float[Tensor, "unit width"]:
    """Score every unit of `axis`, fp32; scores of one value a unit come back with width 1.

    `weight` is the consumer's weight as stored, or None if the score does not ask for it.
    `members` is the name in `REDUCTIONS` by which scores that `combine` members do so.

    Raises:
        SecateurError: the score asks for something unknown, or its result has another shape.
    """
    ingredients = {
        name: _ingredient(name, axis, weight, statistics, seed, members)
        for name in importance.needs
        if name not in MATRICES or axis.consumer.linear
    }
    if set(ingredients) == set(importance.needs):
        scores = _called(importance, ingredients, axis.name)
    else:
        matrices = set(importance.needs) - set(ingredients)
        parts = _by_expert(axis, ingredients, matrices, statistics)
        scores = torch.cat([_called(importance, part, axis.name) for part in parts])
    if scores.dim() == 1:
        scores = scores[:, None]
    width = axis.consumer.blocks.width
    if scores.dim() != 2 or len(scores) != axis.units or scores.shape[1] not in (1, width):
        raise SecateurError(
            f"The score {importance.name!r} returned shape {list(scores.shape)} for {axis.name};"
            f" expected [{axis.units}] or [{axis.units}, {width}]."
        )
    if not torch.isfinite(scores).all():
        raise SecateurError(
            f"The score {importance.name!r} is NaN or infinite on {axis.name}: weights or inputs of"
            f" {axis.consumer.module} are too large.\n"
            "The checkpoint is probably damaged: download or export the model again."
        )
    return scores


def _by_expert(
    axis: Axis,
    ingredients: Mapping[str, Any],
    matrices: Collection[str],
    statistics: Ingredients,
) -> Iterator[dict[str, Any]]:
    """The ingredients of one expert after the other: a matrix of all has their square."""
    units = axis.units // axis.groups
    for group in range(axis.groups):
        own = slice(group * units, (group + 1) * units)
        part = {name: _of_units(name, value, own) for name, value in ingredients.items()}
        yield {**part, **{name: statistics[f"{name}#{group}"] for name in matrices}}


def _of_units(name: str, value: Any, units: slice) -> Any:
    """An ingredient of some units."""
    if name == "weight" or name.startswith("input_") or name in GATES:
        return value[units]
    return value[:, units] if name in GRADIENTS and name != OUTPUT_FISHER else value


def _called(importance: Importance, ingredients: dict[str, Any], axis: str) -> Tensor:
    """What the score's function gives, fp32; the function may be anybody's."""
    scores = importance.called(f"The score {importance.name!r} fails on {axis}", **ingredients)
    if not isinstance(scores, Tensor) or scores.is_meta or scores.is_complex() or scores.is_sparse:
        kind = f"a {scores.device.type} tensor" if isinstance(scores, Tensor) else type(scores)
        name = kind if isinstance(kind, str) else kind.__name__
        raise SecateurError(
            f"The score {importance.name!r} returned {name} for {axis}; expected a tensor of one"
            " number a unit."
        )
    return scores.float()


def _ingredient(
    name: str,
    axis: Axis,
    weight: Tensor | None,
    statistics: Ingredients,
    seed: int,
    members: str,
) -> Any:
    consumer = axis.consumer
    if name == "weight":
        assert weight is not None, "a score that asks for the weight is given it"
        return consumer.view(weight.float(), axis.units)
    if name == "generator":
        return _generator(axis.name, seed)
    if name == "combine":
        return choose("reduction of members", members, REDUCTIONS)
    if name in GRADIENTS:
        return statistics[name]
    if not name.startswith("input_"):
        raise SecateurError(
            f"A score asks for {name!r}; known are weight, generator, combine, the statistics"
            " input_mean, input_var, input_norm, input_gram, input_spread and the gradient terms"
            f" {', '.join(GRADIENTS)}."
        )
    order = consumer.blocks.indices(torch.arange(axis.units))
    statistic = statistics[name]
    if name not in MATRICES:
        return statistic[order]
    order = order.flatten()
    if torch.equal(order, torch.arange(len(statistic))):
        return statistic  # it is large, and a copy as large again
    return statistic[order[:, None], order]


def _generator(axis: str, seed: int) -> torch.Generator:
    """One stream of random numbers an axis, so that layer ranges do not shift the others."""
    digest = hashlib.sha256(f"{seed} {axis}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
