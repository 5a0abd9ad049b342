"""Whole runs: the only place that knows the order of the stages.

open -> structure -> calibration -> statistics -> scores -> plan -> cut and repair -> evaluate
-> write
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from ..arguments import (
    a_flag,
    a_model,
    a_progress,
    a_target,
    a_tokenizer,
    of_kind,
    optional,
    public,
)
from ..config import PruneSettings, make_config
from ..errors import ArgumentError
from ..progress import Progress
from ..structure import Plan
from ..surgery import REPAIRS
from .checks import target
from .choice import check_ratio
from .look import read_plan
from .record import write_plan
from .result import Result
from .session import Run, name_of, path_of, recorded_settings
from .texts import named


def _a_plan(name: str, value: Any) -> Plan:
    """A plan, or where one can be read."""
    if isinstance(value, Plan):
        return value
    if isinstance(value, Mapping):
        return Plan.from_raw(value)
    if not isinstance(value, str | PathLike):
        raise ArgumentError(
            f"{name} must be a Plan, a plan.json or its folder, not {of_kind(value)}."
        )
    return read_plan(Path(value))


@public(
    model=a_model,
    out=optional(a_target),
    force=a_flag,
    dry_run=a_flag,
    tokenizer=a_tokenizer,
    progress=a_progress,
)
def prune(
    model: str | Path | nn.Module,
    *,
    out: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    tokenizer: Any = None,
    progress: Progress | None = None,
    **settings: Unpack[PruneSettings],
) -> Result:
    """Prune `model` and write the smaller one to the folder `out`.

    `model` is a checkpoint folder, a name on the hub, or a live transformers module (then give its
    `tokenizer`; with `out` None the pruned model comes from `Result.load()`). `settings` are the
    fields of `PruneConfig`: method, ratio, layers, align, calibration, seed and so on. In the place
    of a name, `calibration` and `evaluate` may be text: a list of strings, rows with text in them
    (a `datasets.Dataset`, streamed or not), or tokens as a tensor [window, token].

    Raises:
        SecateurError: bad input; nothing was written.
    """
    out = path_of(out)
    names, texts = named(settings)
    config = make_config(model=name_of(model), **names)
    run = Run(model, config, tokenizer, progress, texts)
    check_ratio(run.structure, run.config)
    with target(out, force, run.opened, *run.texts) as folder:
        if dry_run:
            plan, _ = run.plan()
            run.say_form(plan, run.check_form(plan))
            if folder is not None:
                write_plan(folder, run.opened.weights, run.structure, plan)
            return run.result(plan, run.found(plan), None, out)
        run.read_evaluation_text()
        plan, statistics = run.plan()
        return run.carry_out(plan, statistics, folder, out)


@public(
    model=a_model,
    plan=_a_plan,
    out=optional(a_target),
    force=a_flag,
    tokenizer=a_tokenizer,
    progress=a_progress,
)
def apply(
    plan: Plan | str | Path | Mapping[str, Any],
    model: str | Path | nn.Module,
    *,
    out: str | Path | None = None,
    force: bool = False,
    tokenizer: Any = None,
    progress: Progress | None = None,
    **settings: Unpack[PruneSettings],
) -> Result:
    """Cut `model` by a plan made before, perhaps edited since; the repair is done anew.

    `plan` is a `Plan`, the path of a plan.json (or of a folder that has one), or what it holds.
    `settings` override what the plan records (its repair, its calibration text and seed).

    Raises:
        SecateurError: bad input, or a plan for another architecture; nothing was written.
    """
    assert isinstance(plan, Plan), "its check makes one of all that it takes"
    out = path_of(out)
    names, texts = named(settings)
    # a plan that says nothing of BOS is of a time when texts alone began with it
    recorded = {"bos": "document", **recorded_settings(plan)}
    merged = {**recorded, "repair": plan.repair, **names}
    config = make_config(**{**merged, "model": name_of(model)})
    run = Run(model, config, tokenizer, progress, texts)
    plan.check(run.structure)
    run.text_of_plan = "calibration" not in settings
    if not any(plan.removed(axis) for axis in run.structure.axes):
        run.note("nothing is removed: the plan keeps every unit")
    if plan.weights != run.structure.weights:
        run.note("the plan was made for other weights of the same architecture")
    with target(out, force, run.opened, *run.texts) as folder:
        run.read_evaluation_text()
        # an edited plan may cut layers that the settings did not ask for
        statistics = run.gather(REPAIRS[run.config.repair_name].needs, (), everywhere=True)
        return run.carry_out(plan, statistics, folder, out)
