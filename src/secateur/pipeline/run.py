"""Whole runs: the only place that knows the order of the stages.

open -> structure -> calibration -> statistics -> scores -> plan -> cut and repair -> evaluate
-> write
"""

from pathlib import Path
from typing import Any

from torch import nn

from ..config import make_config
from ..progress import Progress
from ..structure import Plan
from ..surgery import REPAIRS
from .checks import target
from .choice import check_ratio
from .record import write_plan
from .result import Result
from .session import Run, name_of, path_of, recorded_settings


def prune(
    model: str | Path | nn.Module,
    *,
    out: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    tokenizer: Any = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Prune `model` and write the smaller one to the folder `out`.

    `model` is a checkpoint folder, a name on the hub, or a live transformers module (then give its
    `tokenizer`; with `out` None the pruned model comes from `Result.load()`). `settings` are the
    fields of `PruneConfig`: method, ratio, layers, align, calibration, seed and so on.

    Raises:
        SecateurError: bad input; nothing was written.
    """
    out = path_of(out)
    run = Run(model, make_config(model=name_of(model), **settings), tokenizer, progress)
    check_ratio(run.structure, run.config)
    with target(out, force, run.opened, *run.texts) as folder:
        if dry_run:
            plan, _ = run.plan()
            if folder is not None:
                write_plan(folder, run.opened.weights, run.structure, plan)
            return run.result(plan, run.found(plan), None, out)
        run.read_evaluation_text()
        plan, statistics = run.plan()
        return run.carry_out(plan, statistics, folder, out)


def apply(
    plan: Plan,
    model: str | Path | nn.Module,
    *,
    out: str | Path | None = None,
    force: bool = False,
    tokenizer: Any = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Cut `model` by a plan made before, perhaps edited since; the repair is done anew.

    `settings` override what the plan records (its repair, its calibration text and seed).

    Raises:
        SecateurError: bad input, or a plan for another architecture; nothing was written.
    """
    out = path_of(out)
    recorded = recorded_settings(plan)
    merged = {**recorded, "repair": plan.repair, **settings}
    run = Run(model, make_config(**{**merged, "model": name_of(model)}), tokenizer, progress)
    plan.check(run.structure)
    run.text_of_plan = "calibration" not in settings
    if plan.weights != run.structure.weights:
        run.note("the plan was made for other weights of the same architecture")
    with target(out, force, run.opened, *run.texts) as folder:
        run.read_evaluation_text()
        # an edited plan may cut layers that the settings did not ask for
        statistics = run.gather(REPAIRS[run.config.repair_name].needs, (), everywhere=True)
        return run.carry_out(plan, statistics, folder, out)
