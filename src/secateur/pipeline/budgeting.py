"""What the settings ask for, as a budget: what may stay, in the currency that the user has."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..budgets import (
    BUDGETS,
    Budget,
    Cache,
    Table,
    Work,
    latent_width,
    measured_table,
    token_seconds,
    windows_of,
    work_seconds,
)
from ..checkpoint import TensorSpec
from ..config import PruneConfig
from ..device_memory import available_bytes
from ..errors import SecateurError
from ..export import Form
from ..models import OpenModel, filled, resolve_device, resolve_dtype, routed_experts
from ..progress import note, timed
from ..ranks import this
from ..search import Limits
from ..structure import Plan, Structure
from .choice import shapes_left
from .stock import form_of

Specs = Mapping[str, TensorSpec]

# The longest context that is taken where none is named.
_CONTEXT = 4096
# Of the memory that is free, what models that are timed may take.
_SHARE = 0.8


def budget_of(opened: OpenModel, structure: Structure, config: PruneConfig) -> Budget:
    """What the settings ask for; budgets of time measure the model first.

    Raises:
        SecateurError: the model does not have the context that is named, or units without a time.
    """
    kind = BUDGETS[config.budget_name]
    if opened.around is not None and kind.name != "ratio":
        note(f"--{kind.name} is about the text decoder alone")

    def written(plan: Plan) -> Specs:
        return form_of(opened, structure, plan, config.repair_name).weights.specs

    given: dict[str, Callable[[], Any]] = {
        "asked": lambda: getattr(config, kind.name),
        "structure": lambda: structure,
        "of": lambda: config.of,
        "cut": lambda: shapes_left(structure, opened.weights),
        "written": lambda: written,
        "cache": lambda: cache_of(opened, config),
        "table": lambda: table_of(opened, structure, config),
    }
    found: Budget = kind.function(**{need: given[need]() for need in kind.needs})
    return found


def context_of(opened: OpenModel, config: PruneConfig) -> int:
    """Tokens in the KV cache of a sequence.

    Raises:
        SecateurError: more than the model takes.
    """
    if config.at_context is None:
        return min(opened.context, _CONTEXT)
    if config.at_context > opened.context:
        raise SecateurError(
            f"--at-context {config.at_context}: the model takes {opened.context} tokens at most."
        )
    return config.at_context


def cache_of(opened: OpenModel, config: PruneConfig, itemsize: int | None = None) -> Cache:
    """The KV cache at the context and batch of the settings, in the dtype of the weights."""
    return Cache(
        opened.structures,
        opened.family.head_dim(opened.config),
        itemsize or opened.dtype.itemsize,
        windows_of(opened.config),
        context_of(opened, config),
        config.at_batch,
        latent_width(opened.config),
    )


def table_of(opened: OpenModel, structure: Structure, config: PruneConfig) -> Table:
    """What the shapes of the model take on the device, in the dtype that engines compute in."""
    device, dtype = resolve_device(config.device), _dtype(opened, config)
    specs = opened.weights.specs
    cache = cache_of(opened, config, dtype.itemsize)

    def dense() -> float:
        return _token_times([opened.whole(dtype)], device, cache)[0]

    size = _bytes(specs, dtype) + cache.bytes(Plan({}, "", ""), structure)
    # of several ranks one measures: others would measure something else
    ranks = this()
    fits = ranks.told("memory", lambda: size < _SHARE * available_bytes(device))
    if not fits:
        note("the model does not fit into memory: its time is that of its parts, and not measured")
    skeleton: Any = opened.skeleton
    head = skeleton.get_output_embeddings().weight
    with timed("table of times"):
        return measured_table(
            structure,
            opened.structures,
            specs,
            cache,
            grid=Limits(align=config.align, parallel=config.tensor_parallel).grid,
            routed=routed_experts(opened.config),
            head=tuple(head.shape),
            timer=lambda work: ranks.told("work", lambda: seconds_of(work, device, dtype)),
            dense=(lambda: ranks.told("token", dense)) if fits else None,
        )


def seconds_of(work: Work, device: torch.device, dtype: torch.dtype) -> float:
    """What a work takes here."""
    return work_seconds(work, device, dtype)


def _token_times(models: list[Any], device: torch.device, cache: Cache) -> list[float]:
    """Seconds of a token of each of several models."""
    return token_seconds([model.to(device) for model in models], cache.context, cache.batch)


def _dtype(opened: OpenModel, config: PruneConfig) -> torch.dtype:
    """That of the weights, if none is named: passes may be in another where this CPU is slow."""
    return resolve_dtype(config.dtype) or opened.dtype


def _bytes(specs: Specs, dtype: torch.dtype) -> int:
    return sum(spec.elements for spec in specs.values()) * dtype.itemsize


def budget_numbers(
    opened: OpenModel, config: PruneConfig, budget: Budget, plan: Plan, form: Form | None = None
) -> dict[str, Any]:
    """What was asked for and what became of it; of a model that is made, time is measured, too.

    Then the dense model and the smaller one take turns, where both fit into memory.
    """
    if config.budget_name == "ratio":
        return {}
    numbers: dict[str, Any] = budget.numbers(plan, None if form is None else form.weights.specs)
    if config.budget_name != "parameters":
        numbers |= {"context": context_of(opened, config), "batch": config.at_batch}
    if not budget.timed or form is None or opened.around is not None:
        return {"budget": numbers}
    device, dtype = resolve_device(config.device), _dtype(opened, config)
    cache = cache_of(opened, config, dtype.itemsize)
    size = 2 * cache.bytes(Plan({}, "", ""), opened.structures)
    size += _bytes(opened.weights.specs, dtype) + _bytes(form.weights.specs, dtype)
    if this().told("memory", lambda: size > _SHARE * available_bytes(device)):
        note("the dense and the pruned model do not fit into memory together: none was timed")
        return {"budget": numbers}

    def times() -> list[float]:
        small = filled(form.empty(dtype), form.weights, dtype)
        return _token_times([opened.whole(dtype), small], device, cache)

    with timed("measured speed"):
        before, after = this().told("times", times)
    measured = {"before": before * 1e3, "after": after * 1e3, "speedup": before / after}
    return {"budget": {**numbers, "measured": measured}}
