"""Proof of a layout on a small model of its family: slicing equals masking.

Both routes start from the same small random model (fp64 if it can, norms made linear, so that
nothing but the layout decides). One cuts units out and loads the smaller model, the other sets to
zero what reads the same units. A wrong index map, an attribute that does not follow, slopes of the
wrong heads: each of them makes the two differ.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import module_view
from ..errors import SecateurError
from ..models import OpenModel, empty_model, filled, structure_of
from ..models.discovery import (
    TOLERANCES,
    dense_config,
    linearise_norms,
    norm_sizes,
    running_model,
    shallow_config,
    tokens,
)
from ..structure import Coupling, Member, Plan, Structure
from ..structure.size import Size
from ..surgery import pruned_view
from .form import pruned_form

Follow = tuple[tuple[str, str, Size], ...]


def proved(opened: OpenModel) -> tuple[OpenModel, float]:
    """The model with those couplings alone that hold, and the difference that is left.

    A declared layout holds whole or not at all. Of a traced one, what does not hold is left whole.

    Raises:
        SecateurError: nothing of it holds.
    """
    if opened.declared:
        return opened, prove(opened)
    opened = _without_failing(opened)
    if not opened.structure.axes:
        raise SecateurError(
            f"Nothing in the layers of {opened.config.model_type!r} can be taken out by units: no"
            " coupled structure that was traced holds.\nThis family needs a declared layout."
        )
    difference = prove(opened)
    for granularity in ("query_head", "expert"):
        others = [c for c in opened.family.couplings if c.granularity != granularity]
        if len(others) < len(opened.family.couplings) and not _holds(opened, (granularity,)):
            opened = _with(opened, others)
    return opened, difference


def _without_failing(opened: OpenModel) -> OpenModel:
    if _holds(opened):
        return opened
    heads = _with(opened, opened.family.couplings, follow=opened.family.widths)
    if opened.family.widths and _holds(heads):
        return heads
    left: dict[str, str] = {}
    kept: list[Coupling] = []
    widths: Follow = ()
    for reader, some in _by_reader(opened.family.couplings).items():
        if _holds(_with(opened, some)):
            kept += some
        elif _holds(_with(opened, some, follow=opened.family.widths)):
            kept, widths = [*kept, *some], opened.family.widths
        else:
            left[reader.rpartition(".")[0] or reader] = (
                "cut by what was traced, a model does not do what it does when masked"
            )
    return _with(opened, kept, left, follow=widths)


def _by_reader(couplings: Iterable[Coupling]) -> dict[str, list[Coupling]]:
    """Couplings by the module that reads their units: they hold together or not at all."""
    found: dict[str, list[Coupling]] = {}
    for coupling in couplings:
        reader = next(piece.module for piece in coupling.slices if piece.role == "consumer")
        found.setdefault(reader, []).append(coupling)
    return found


def _with(
    opened: OpenModel,
    couplings: Iterable[Coupling],
    left: Mapping[str, str] | None = None,
    *,
    follow: Follow = (),
) -> OpenModel:
    """The model with these couplings, and what follows from them and no others."""
    couplings = tuple(couplings)
    known = dict(opened.family.left) | dict(left or {})
    blocks = {piece.module.partition(".")[0] for c in couplings for piece in c.slices}
    following = [*opened.family.follow, *follow]
    family = replace(
        opened.family,
        couplings=couplings,
        follow=tuple(item for item in following if item[0].partition(".")[0] in blocks),
        left=tuple(sorted(known.items())),
    )
    return replace(opened, family=family)


def _holds(opened: OpenModel, granularities: tuple[str, ...] = ()) -> bool:
    try:
        _ = opened.structures  # the sizes of the real model, too, are as the layout says
        prove(opened, granularities=granularities)
    except SecateurError:
        return False
    return True


def prove(opened: OpenModel, *, seed: int = 0, granularities: tuple[str, ...] = ()) -> float:
    """The greatest difference of logits between slicing and masking, relative (right: 1e-15).

    `granularities` are those that are cut, the default ones if none are named.

    Raises:
        SecateurError: they differ, so the layout does not describe the family's code.
    """
    model_type = opened.config.model_type
    try:
        plans = (ragged_plan,) if opened.declared else (ragged_plan, even_plan)
        found = [_difference(opened, seed, granularities, plan) for plan in plans]
    except SecateurError:
        raise
    except Exception as error:  # the family's own code: anything may come out of it
        reason = " ".join(str(error).split())[:160]
        raise SecateurError(
            f"The coupled structures that were traced for {model_type!r} do not hold: a small"
            f" model cut by them does not run ({reason}).\nThis family needs a declared layout."
        ) from error
    difference = max(difference for difference, _ in found)
    if not all(difference < TOLERANCES[dtype] for difference, dtype in found):
        raise SecateurError(
            f"The coupled structures that were traced for {model_type!r} do not hold: on a small"
            f" model slicing and masking differ by {difference:.1e}.\n"
            "This family needs a declared layout."
        )
    return difference


def _difference(
    opened: OpenModel,
    seed: int,
    granularities: tuple[str, ...],
    plan_of: Callable[[Structure, int], Plan],
) -> tuple[float, torch.dtype]:
    """The difference that a plan makes, and the dtype in which the small models compute."""
    dense = running_model(_shallow(opened), seed)
    weights = module_view(dense)
    structure = structure_of(opened.family, dense, weights).select(granularities)
    plan = plan_of(structure, seed)
    pruned = pruned_view(weights, structure, plan)
    raw = dense.config.to_dict() | {"architectures": [opened.family.model]}
    form = pruned_form(opened.family, raw, dense.config, structure, plan, pruned)
    small = filled(form.empty(dense.dtype), form.weights)
    for model in (small, dense):
        model.config._attn_implementation = "eager"
    ids = torch.cat([tokens(seed), tokens(seed + 1)])
    sizes = norm_sizes(dense, ids)
    for model in (small, dense):
        linearise_norms(model, sizes)
    with torch.no_grad():
        sliced = small(input_ids=ids, use_cache=False).logits
        mask(dense, structure, plan)
        masked = dense(input_ids=ids, use_cache=False).logits
    return float((sliced - masked).abs().max() / masked.abs().max()), dense.dtype


def _shallow(opened: OpenModel) -> Any:
    """The dense config, with as many layers as show one of each kind."""
    config, model = dense_config(opened.config), opened.skeleton
    if config is not opened.config:
        model = empty_model(config, torch.float32)
    return shallow_config(config, model, opened.family.layers)


def ragged_plan(structure: Structure, seed: int) -> Plan:
    """Every axis that can loses another share of its units, at random; none is emptied."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for axis in structure.axes:
        per_group = axis.units // axis.groups
        low = min(axis.floor, per_group)
        count = low + int(torch.randint(max(per_group - low, 1), (1,), generator=generator))
        keep[axis.name] = tuple(
            group * per_group + unit
            for group in range(axis.groups)
            for unit in sorted(torch.randperm(per_group, generator=generator)[:count].tolist())
        )
    return Plan(keep, structure.architecture, structure.weights)


def even_plan(structure: Structure, seed: int) -> Plan:
    """Every axis loses its last third, but one unit stays: layers alike, which is a stock form."""
    keep = {}
    for axis in structure.axes:
        per_group = axis.units // axis.groups
        count = max(min(axis.floor, per_group), 1, per_group - max(per_group // 3, 1))
        keep[axis.name] = tuple(
            group * per_group + unit for group in range(axis.groups) for unit in range(count)
        )
    return Plan(keep, structure.architecture, structure.weights)


def mask(model: torch.nn.Module, structure: Structure, plan: Plan) -> None:
    """Set to zero, in place, the weights that read a removed unit."""
    parameters = dict(model.named_parameters())
    for axis in structure.axes:
        for member in axis.consumers:
            zero_slices(parameters[member.tensor].data, member, plan.removed_tensor(axis))


def zero_slices(tensor: Tensor, member: Member, units: Tensor) -> None:
    """Set to zero, in place, what `units` own of `tensor`."""
    front = tuple(range(len(member.dims)))
    moved = torch.zeros(tensor.shape, dtype=torch.bool).movedim(member.dims, front)
    rows = moved.flatten(0, len(front) - 1).clone()
    rows[member.blocks.indices(units).flatten()] = True
    tensor[rows.view(moved.shape).movedim(front, member.dims)] = 0
