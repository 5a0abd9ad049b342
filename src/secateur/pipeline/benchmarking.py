"""What a model costs to run, beside another one: counted, timed in turns, and by its widths."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from ..arguments import a_model, a_progress, optional, public
from ..benchmark import (
    MIXTURES,
    Allowance,
    Case,
    Counts,
    Rows,
    Spread,
    Timed,
    aligned_shapes,
    cache_bytes,
    counts_of,
    file_size,
    mlp_axes,
    multiples,
    natural_multiple,
    processor,
    rows_of,
    run_of,
    timed_case,
    weight_bytes,
)
from ..budgets import Cache, latent_width, windows_of
from ..config import BenchConfig, BenchSettings, make_bench_config
from ..device_memory import available_bytes
from ..models import (
    OpenModel,
    dtype_name,
    open_model,
    resolve_device,
    resolve_dtype,
    routed_experts,
)
from ..progress import Progress, note, telling, timed, track
from ..structure import format_ranges
from .subject import name_of

# Of the memory that is free, what models that are timed may take.
_SHARE = 0.8
# Widths that kernels and quantised types like, and those that --align is tried at.
MULTIPLES = (8, 16, 32, 64, 128, 256)
ALIGNED = (32, 64, 256)


@dataclass(frozen=True)
class Bench:
    """What was found, as numbers for JSON: `models` are MODEL and, if there is one, DENSE."""

    numbers: dict[str, Any]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**self.numbers, "notes": list(self.notes)}


@public(model=a_model, against=optional(a_model), progress=a_progress)
def bench(
    model: str | Path | nn.Module,
    *,
    against: str | Path | nn.Module | None = None,
    progress: Progress | None = None,
    **settings: Unpack[BenchSettings],
) -> Bench:
    """What `model` costs to run: parameters, multiply-accumulates, memory, time, widths.

    With a model to compare it `against`, the two are timed in turns. `settings` are the fields of
    `BenchConfig`: batch_sizes, contexts, seconds, device, dtype.

    Raises:
        SecateurError: bad input.
    """
    config = make_bench_config(**settings, model=name_of(model))
    with telling(progress) as told:
        given = [model] if against is None else [model, against]
        opened = [open_model(one, **config.reading) for one in given]
        for one in opened:
            tell(one)
        contexts = config.contexts_of(min(one.context for one in opened))
        device = resolve_device(config.device)
        dtype = resolve_dtype(config.dtype) or opened[0].dtype
        counts = [counts_in(one) for one in opened]
        numbers: dict[str, Any] = {
            "settings": config.model_dump(),
            "machine": machine(device, dtype),
            "models": [
                model_numbers(one, count, config, contexts, dtype, device)
                for one, count in zip(opened, counts, strict=True)
            ],
        }
        cases = cases_of(counts, config.batches, contexts)
        found = times(opened, cases, config.seconds, device, dtype)
        numbers["timed"] = [case_numbers(one, numbers["models"]) for one in found]
        numbers["seconds"] = told.seconds
        return Bench(numbers, tuple(told.notes))


def tell(opened: OpenModel) -> None:
    """What is to be known of how a model was read and counted."""
    for message in opened.notes:
        note(message)
    for left in opened.left:
        where = format_ranges(left.layers)
        note(f"{left.module} in layers {where} is counted by its linears alone")


def counts_in(opened: OpenModel) -> Counts:
    """Multiply-accumulates of a token of a model."""
    width = getattr(opened.config, "qk_head_dim", None)
    return counts_of(
        opened.skeleton,
        opened.structures,
        routed=routed_experts(opened.config),
        key_width=width if isinstance(width, int) else None,
        latent=latent_width(opened.config) > 0,
        windows=windows_of(opened.config),
    )


def model_numbers(
    opened: OpenModel,
    counts: Counts,
    config: BenchConfig,
    contexts: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """What is known of a model without running it."""
    specs, structure = opened.weights.specs, opened.structures
    shapes = {name: tuple(spec.shape) for name, spec in specs.items()}
    embedding, head = (name_in(opened.skeleton, which) for which in ("input", "output"))
    rows = rows_of(structure, shapes, embedding, head)
    natural = natural_multiple(device, dtype)
    caches = cache_bytes(cache_in(opened, dtype), contexts, config.batches)
    widths = [axis.units // axis.groups for axis in mlp_axes(structure)]
    return {
        "model": opened.source,
        "name": opened.name,
        "parameters": structure.parameters,
        "macs": {
            "linears": counts.linears,
            "head": counts.head,
            "token": {str(one): counts.token(one) for one in contexts},
        },
        "weights": weight_bytes(specs),
        "cache": [
            {"batch": batch, "context": context, "bytes": caches.pop(0)}
            for batch in config.batches
            for context in contexts
        ],
        "layers": structure.layers,
        "widths": multiples(rows, sorted({*MULTIPLES, natural})),
        "gguf": gguf_numbers(rows),
        "aligned": {
            str(align): gguf_numbers(
                rows_of(structure, aligned_shapes(structure, shapes, align), embedding, head)
            )
            for align in ALIGNED
            if any(width % align for width in widths)
        },
    }


def gguf_numbers(rows: Sequence[Rows]) -> dict[str, dict[str, int | None]]:
    """Of each mixture of types, the size of the file and the tensors that fell back."""
    sizes = {name: file_size(rows, mixture) for name, mixture in MIXTURES.items()}
    return {
        name: {"bytes": size.bytes, "fallen": size.fallen, "in_16_bits": size.in_16_bits}
        for name, size in sizes.items()
    }


def cache_in(opened: OpenModel, dtype: torch.dtype) -> Cache:
    """The KV cache of a token."""
    return Cache(
        opened.structures,
        opened.family.head_dim(opened.config),
        dtype.itemsize,
        windows_of(opened.config),
        1,
        1,
        latent_width(opened.config),
    )


def cases_of(
    counts: Sequence[Counts], batches: Sequence[int], contexts: Sequence[int]
) -> list[Case]:
    """What is to be timed: decoding first, which is of most interest; the cheap before the dear."""
    found = []
    for batch in batches:
        for context in contexts:
            token, prompt = (
                batch * sum(work)
                for work in zip(
                    *((one.token(context), one.prompt(context)) for one in counts), strict=True
                )
            )
            found.append(Case("decoding", batch, context, token))
            found.append(Case("prompt", batch, context, prompt))
    return sorted(found, key=lambda case: (case.stage, case.macs))


def times(
    opened: Sequence[OpenModel],
    cases: Sequence[Case],
    seconds: float,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Timed]:
    """The times of the cases, as far as `seconds` go; none where the models do not fit."""
    if not seconds:
        return []
    largest = max(cases, key=lambda case: case.batch * case.context)
    size = sum(
        weight_bytes(one.weights.specs)["stored"] // one.dtype.itemsize * dtype.itemsize
        + 2 * cache_bytes(cache_in(one, dtype), [largest.context], [largest.batch])[0]
        for one in opened
    )
    if size > _SHARE * available_bytes(device):
        note("the models do not fit into memory together: none was timed")
        return []
    with timed("reading"):
        models = [one.whole(dtype).to(device).eval() for one in opened]
    allowance = Allowance(seconds)
    found = []
    with timed("timing"):
        for number, case in enumerate(track(cases, "timing", len(cases), "case")):
            runs = [run_of(model, case) for model in models]
            found.append(timed_case(runs, case, allowance, len(cases) - number))
    return found


def case_numbers(found: Timed, models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was found of a case; a speedup, and its share of the ratio of the parameters."""
    case = found.case
    numbers: dict[str, Any] = {
        "stage": case.stage,
        "batch": case.batch,
        "context": case.context,
        "rounds": len(found.rounds),
    }
    if not found.rounds:
        return numbers
    spreads = [Spread.of(found.seconds(at)) for at in range(len(models))]
    numbers["seconds"] = [vars_of(one) for one in spreads]
    if case.stage == "decoding":
        numbers["tokens_per_second"] = [case.batch / one.median for one in spreads]
    if len(models) > 1:
        speedup = Spread.of(found.speedups)
        ratio = models[1]["parameters"] / models[0]["parameters"]
        numbers["speedup"] = vars_of(speedup)
        numbers["of_parameter_ratio"] = speedup.median / ratio
    return numbers


def vars_of(spread: Spread) -> dict[str, float]:
    """A spread as numbers."""
    return {"median": spread.median, "low": spread.low, "high": spread.high}


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What times are of, and what else the machine does (processes that run, over a minute)."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"CPU ({processor()})",
        "threads": torch.get_num_threads(),
        "dtype": dtype_name(dtype),
        "natural_multiple": natural_multiple(device, dtype),
        "torch": torch.__version__,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def name_in(model: Any, which: str) -> str:
    """The name of the weight of a model's embedding or head."""
    wanted = getattr(model, f"get_{which}_embeddings")()
    found = next(path for path, module in model.named_modules() if module is wanted)
    return f"{found}.weight"
