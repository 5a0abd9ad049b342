"""The stage that cuts: a plan becomes the weights of a smaller model, repaired."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..checkpoint import View, digest
from ..errors import SecateurError
from ..export import Form, pruned_form, with_around
from ..progress import note, timed
from ..report import engine_notes
from ..stats import Statistics
from ..structure import Plan, Structure
from ..surgery import REPAIRS, Repaired, pruned_view, sequential_repair, with_consumers
from .passes import walk
from .stock import form_facts, form_of
from .subject import Subject


@dataclass(frozen=True)
class Cut:
    """The smaller model as it will be written; what a repair that fits reports of each linear.

    `made_by` is a hash of the plan and of all that the repair depends on.
    """

    form: Form
    made_by: str
    repair: tuple[Mapping[str, Any], ...] | None = None


def cut(
    subject: Subject,
    plan: Plan,
    tokens: Int64[Tensor, "window token"] | None,
    statistics: Statistics,
) -> Cut:
    """Cut by the plan and repair what is left; tensors are made when they are asked for.

    Raises:
        SecateurError: --stock, and the family's class does not hold it.
    """
    opened, structure, config = subject.opened, subject.structure, subject.config
    if config.stock:
        foreseen_form(subject, plan)
    with timed("cut"):
        if config.repair_name != "none" and any(
            plan.removed(axis) and axis.granularity == "expert_channel" for axis in structure.axes
        ):
            note(f"experts are cut as they are: --repair {config.repair_name} mends the rest")
        added = added_biases(structure, plan, config.repair_name, opened.weights, statistics)
        repaired = _fitted(subject, plan, tokens)
        pruned = pruned_view(opened.weights, structure, plan, added, repaired.tensors)
        # all granularities: what an earlier cut of others left is written down again
        form = pruned_form(
            opened.family, opened.raw_config, opened.config, opened.structures, plan, pruned
        )
        form = with_around(form, opened)
    way = None if tokens is None else walk(subject, tokens).known_by
    made_by = digest([plan.keep, config.repair_name, config.target, config.damping, way])
    if not REPAIRS[config.repair_name].fits:
        return Cut(form, made_by)
    return Cut(form, made_by, tuple(dataclasses.asdict(one) for one in repaired.reports))


def foreseen_form(subject: Subject, plan: Plan) -> Form:
    """The form that the folder will have, found before the repair.

    Raises:
        SecateurError: --stock, and the family's class does not hold it.
    """
    config = subject.config
    form = form_of(subject.opened, subject.structure, plan, config.repair_name)
    if config.stock and not form.stock:
        option = f"--{config.budget_name}"
        raise SecateurError(f"--stock: {form.why}.\nChange {option}, or leave out --stock.")
    return form


def form_numbers(subject: Subject, form: Form, removed_share: float) -> dict[str, Any]:
    """Which class loads the result; tells what other engines make of it, and what --stock costs."""
    config = subject.config
    for message in engine_notes(
        subject.structure, subject.opened.weights.specs, form.weights.specs
    ):
        note(message)
    if config.stock and config.ratio is not None:
        of = "the whole model" if config.of == "model" else "them"
        note(
            f"--stock: {removed_share:.1%} of the decoder's linears go; the ratio asks for"
            f" {config.ratio:.1%} of {of}"
        )
    return form_facts(form)


def added_biases(
    structure: Structure, plan: Plan, repair: str, weights: View, statistics: Statistics
) -> dict[str, Tensor]:
    """What a repair that is made of statistics adds to the consumers' biases, by tensor name."""
    biases: dict[str, Tensor] = {}
    chosen = REPAIRS[repair]
    for axis in structure.axes if chosen.statistics else ():
        removed, consumer = plan.removed_tensor(axis), axis.consumer
        # Experts have no module of their own that could take a bias.
        if len(removed) and consumer.linear:
            order = consumer.blocks.indices(torch.arange(axis.units))[removed]
            given = {name: statistics[axis.name][name][order] for name in chosen.statistics}
            if "weight" in chosen.needs:
                weight = weights.tensor(consumer.tensor)
                given["weight"] = consumer.view(weight, axis.units)[removed]
            bias = chosen.called(f"The repair {repair!r} fails on {axis.name}", **given)
            fan = weights.specs[consumer.tensor].shape[1 - consumer.dim]
            if not isinstance(bias, Tensor) or bias.shape != (fan,):
                raise SecateurError(
                    f"The repair {repair!r} returned {tuple(getattr(bias, 'shape', ()))} for"
                    f" {axis.name}; expected one number for each of {fan} outputs."
                )
            biases[f"{consumer.module}.bias"] = bias
    return biases


def _fitted(subject: Subject, plan: Plan, tokens: Int64[Tensor, "window token"] | None) -> Repaired:
    """New tensors of the consumers, where the repair fits them in sequence.

    Where the structure has layers alone, the linears in those that stay are fitted.
    """
    config = subject.config
    if not REPAIRS[config.repair_name].fits:
        return Repaired({}, ())
    assert tokens is not None, "what fits has tokens to fit on"
    with timed("repair"):
        repaired = sequential_repair(
            walk(subject, tokens),
            with_consumers(subject.structure, subject.opened.structures),
            plan,
            repair=config.repair_name,
            target=config.target,
            damping=config.damping,
        )
    for message in (*repaired.notes, *(w for one in repaired.reports for w in one.warnings)):
        note(message)
    return repaired
