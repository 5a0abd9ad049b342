"""Plans that the family's own class holds: `--stock`, and what keeps others from it.

Such a plan leaves every layer the same widths, as many heads as the class and transformers' checks
take, and no bias that the class has no place for. Whether it does is not declared: the class is
asked, by `pruned_form`, for plans nearer and nearer to the uncut model.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from ..budgets import Budget
from ..config import PruneConfig
from ..errors import SecateurError
from ..export import Form, pruned_form
from ..models import OpenModel
from ..profiles import FREE
from ..progress import note
from ..search import SEARCHES, Limits
from ..structure import Axis, Member, Plan, Structure
from ..surgery import REPAIRS, WHOLE, pruned_view, with_consumers
from .choice import limits_of, share_of

# A repair that gives no biases.
UNBIASED = "refit-no-bias"


def form_of(opened: OpenModel, structure: Structure, plan: Plan, repair: str = "none") -> Form:
    """The form that the folder will have, before anything is cut or repaired."""
    biases = {
        f"{one.module}.bias": torch.zeros(opened.weights.specs[one.tensor].shape[1 - one.dim])
        for one in _mended(opened, structure, plan, repair)
    }
    weights = pruned_view(opened.weights, structure, plan, biases)
    return pruned_form(
        opened.family, opened.raw_config, opened.config, opened.structures, plan, weights
    )


def _mended(opened: OpenModel, structure: Structure, plan: Plan, repair: str) -> Iterator[Member]:
    """The consumers that may get a bias from the repair.

    Where layers or blocks go, a refit is of the linears in those that stay.
    """
    if not REPAIRS[repair].biased:
        return
    deep = any(axis.granularity in WHOLE and plan.removed(axis) for axis in structure.axes)
    whole = with_consumers(structure, opened.structures) if deep else structure
    for axis in whole.axes:
        linear = not axis.of and axis.layer >= 0 and axis.consumer.linear
        if linear and (deep or plan.removed(axis)):
            yield axis.consumer


def form_facts(form: Form) -> dict[str, Any]:
    """Which class loads it and, if that is not the family's own, why; for results and JSON."""
    return {"stock": form.stock, "class": form.architecture, "why_not_stock": form.why}


def standing(opened: OpenModel) -> dict[str, Any]:
    """The facts of a model as it stands: whether its folder is stock, and if not, why."""
    structure = opened.structures
    form = form_of(opened, structure, Plan({}, structure.architecture, structure.weights))
    facts = form_facts(form)
    if opened.packed:
        facts |= {"stock": False, "why_not_stock": "its weights are in few bits"}
    return facts


def keep_to_stock(
    opened: OpenModel,
    structure: Structure,
    config: PruneConfig,
    budget: Callable[[], Budget] | None = None,
) -> PruneConfig:
    """The settings with which the search finds a plan that the stock class holds.

    `budget` gives what may stay (by default what the ratio says), where heads may go.

    Raises:
        SecateurError: the units, the search, the layers or the repair that were asked for do not
            go with one.
    """
    coarse = {axis.granularity for axis in structure.axes if axis.of or axis.layer < 0}
    _check_units(structure, coarse)
    if coarse:  # layers go whole, the hidden width everywhere: any search does
        if "layer" in coarse:
            _check_repair(opened, structure, config, _last_gone(structure), "--repair none")
        return config
    config = _even(structure, config)
    plan = _trial(structure, config, 0)
    config = _with_repair(opened, structure, config, plan)
    _check_repair(opened, structure, config, plan, "--repair refit-no-bias or --repair none")
    attention = [axis for axis in structure.axes if axis.kind == "attention"]
    if not attention:
        return config
    asked = share_of(structure, config) if budget is None else budget()
    priced = replace(structure, axes=asked.priced(structure.axes))
    wanted = _wanted(attention, priced, config, asked.wanted)
    taken = next(_taken(opened, priced, config, wanted, asked.wanted), None)
    if taken is None:
        why = _why(opened, structure, config, round(wanted)) or "the MLPs cannot give the rest"
        raise SecateurError(
            f"No number of heads that {opened.family.model} takes goes with {asked.option}"
            f" {asked.asked}: {why}.\n"
            f"Change {asked.option}, or leave out --stock."
        )
    if abs(taken - wanted) > attention[0].groups / 2:
        note(
            f"--stock: each layer loses {taken} of its {attention[0].units} attention units, not"
            f" {wanted:.1f}: the nearest number that {opened.family.model} takes"
        )
    update = {"attention_units": taken * len(attention), "attention_ratio": None}
    return config.model_copy(update=update)


def _check_units(structure: Structure, coarse: set[str]) -> None:
    blocks = sorted(coarse & {"attention_block", "mlp_block"})
    if blocks:
        raise SecateurError(
            f"--stock and --granularity {blocks[0]}: the class has both blocks in every layer.\n"
            "Type --granularity layer, or leave out --stock."
        )
    if coarse and coarse != {axis.granularity for axis in structure.axes}:
        raise SecateurError(
            f"--stock: {sorted(coarse)[0]} units and finer ones together leave layers of different"
            " widths.\nName one granularity, or leave out --stock."
        )


def _even(structure: Structure, config: PruneConfig) -> PruneConfig:
    """The settings with a search and layers by which every layer loses the same."""
    given = next(
        (n for n in ("layers", "attention_layers", "mlp_layers") if getattr(config, n)), None
    )
    every = f"0-{structure.layers - 1}"
    if given and getattr(config, given) != every:
        raise SecateurError(
            f"--stock: every layer must lose the same, and --{given.replace('_', '-')} names some."
            "\nLeave it out, or leave out --stock."
        )
    if config.search is not None and not _is_even(config.search):
        raise SecateurError(
            f"--stock: every layer must lose the same, and the search {config.search} finds out"
            " itself how much each loses.\nType --search uniform, or leave out --stock."
        )
    update: dict[str, Any] = {}
    if not _is_even(config.search_name):
        note(f"--stock: the search is uniform, not {config.search_name}: all layers lose the same")
        update["search"] = "uniform"
    if any(config.untouched) and not given:
        note(f"--stock: all layers lose units; {config.method} would leave the first and last")
        update["layers"] = every
    return config.model_copy(update=update)


def _is_even(search: str) -> bool:
    """Whether it takes as many units from each layer (of one not known, the plan itself tells)."""
    return search not in SEARCHES or SEARCHES[search].even


def _last_gone(structure: Structure) -> Plan:
    """A plan of the kind by which the last layer goes."""
    layers = [axis for axis in structure.axes if axis.granularity == "layer"]
    return Plan({layers[-1].name: ()}, structure.architecture, structure.weights)


def _with_repair(
    opened: OpenModel, structure: Structure, config: PruneConfig, plan: Plan
) -> PruneConfig:
    """Under a profile, with a repair that the class has a place for, where none was named."""
    own = config.repair_name
    if config.profile == FREE or config.repair is not None or not REPAIRS[own].biased:
        return config
    if form_of(opened, structure, plan, own).stock or not form_of(opened, structure, plan).stock:
        return config
    note(
        f"--profile {config.profile}: the repair is {UNBIASED}, not {own}: {opened.family.model}"
        " has no place for biases"
    )
    return config.model_copy(update={"repair": UNBIASED})


def _check_repair(
    opened: OpenModel, structure: Structure, config: PruneConfig, plan: Plan, others: str
) -> None:
    """A repair may give biases to linears that the class has none for; `others` give none."""
    if not REPAIRS[config.repair_name].biased:
        return
    if form_of(opened, structure, plan).stock:
        form = form_of(opened, structure, plan, config.repair_name)
        if not form.stock:
            raise SecateurError(
                f"--stock and --repair {config.repair_name}: {form.why}.\n"
                f"Type {others}, or leave out --stock."
            )


def _wanted(
    attention: list[Axis], structure: Structure, config: PruneConfig, budget: float
) -> float:
    """Attention units that each layer is to lose."""
    if config.attention_units is not None:
        return config.attention_units / len(attention)
    share = config.attention_ratio
    if share is None:
        cost = sum(axis.units * axis.cost for axis in structure.axes)
        share = budget / max(cost, 1)
    return share * attention[0].units


def _taken(
    opened: OpenModel, structure: Structure, config: PruneConfig, wanted: float, budget: float
) -> Iterator[int]:
    """The numbers of units that a layer can lose, the nearest to `wanted` first."""
    axis = next(axis for axis in structure.axes if axis.kind == "attention")
    limits = limits_of(structure, config)
    numbers = range(0, axis.units - limits.floor(axis) * axis.groups + 1, axis.groups)
    for number in sorted(numbers, key=lambda n: abs(n - wanted)):
        if (axis.units - number) // axis.groups % limits.grid(axis):
            continue
        if _leaves_enough(structure, limits, number, budget) and not _why(
            opened, structure, config, number
        ):
            yield number


def _leaves_enough(structure: Structure, limits: Limits, number: int, budget: float) -> bool:
    """Whether the MLPs can give what attention leaves of the budget."""
    left, unit, most, step = budget, 0, 0, 0
    for axis in structure.axes:
        if axis.kind == "attention":
            left -= number * axis.cost
            unit += axis.cost * axis.groups
        else:
            most += (axis.units - limits.floor(axis) * axis.groups) * axis.cost
            step += limits.grid(axis) * axis.groups * axis.cost
    return -unit / 2 <= left <= most + (step if most else unit / 2)


def _why(opened: OpenModel, structure: Structure, config: PruneConfig, number: int) -> str:
    """Why the class does not hold a plan that takes `number` attention units from each layer."""
    return form_of(opened, structure, _trial(structure, config, number), config.repair_name).why


def _trial(structure: Structure, config: PruneConfig, number: int) -> Plan:
    """A plan of the kind: `number` attention units of each layer go, and one step of channels."""
    limits = limits_of(structure, config)
    keep = {}
    for axis in structure.axes:
        per_group = axis.units // axis.groups
        step = number // axis.groups if axis.kind == "attention" else limits.grid(axis)
        left = max(per_group - step, limits.floor(axis))
        keep[axis.name] = tuple(u for u in range(axis.units) if u % per_group < left)
    return Plan(keep, structure.architecture, structure.weights)
