"""Whole runs: the only place that knows the order of the stages.

open -> structure -> calibration -> statistics -> scores -> plan -> cut and repair -> evaluate
-> write
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..config import PruneConfig, make_config
from ..data import Windows, token_hash
from ..evaluation import window_lengths
from ..export import Form, copy_companions, prove, pruned_form, write_model
from ..importance import IMPORTANCE, statistics_needed
from ..models import StreamedModel, open_model, resolve_device
from ..progress import Progress, Quiet
from ..stats import Statistics
from ..structure import Plan, Structure
from ..surgery import REPAIRS, PrunedWeights
from . import stages
from .checks import check_space, known_ids, selected, target, tokenizer_to_write
from .look import bytes_before
from .record import write_plan, write_record
from .result import Result


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
    run = _Run(model, make_config(model=_name(model), **settings), tokenizer, progress)
    stages.check_ratio(run.structure, run.config)
    with target(_path(out), force, run.opened) as folder:
        if dry_run:
            plan, _ = run.plan()
            if folder is not None:
                write_plan(folder, run.structure, plan)
            return run.result(plan, run.sizes(plan), None, _path(out))
        run.read_evaluation_text()
        plan, statistics = run.plan()
        return run.carry_out(plan, statistics, folder, _path(out))


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
    recorded = {key: value for key, value in plan.settings.items() if key in _RECORDED}
    merged = {**recorded, **plan.calibration, "repair": plan.repair, **settings}
    run = _Run(model, make_config(**{**merged, "model": _name(model)}), tokenizer, progress)
    plan.check(run.structure)
    if plan.weights != run.structure.weights:
        run.note("the plan was made for other weights of the same architecture")
    with target(_path(out), force, run.opened) as folder:
        run.read_evaluation_text()
        statistics = run.statistics(REPAIRS[run.config.repair_name].needs)
        return run.carry_out(plan, statistics, folder, _path(out))


# Settings that a plan records because they say how it came about; applying it needs none of them.
_RECORDED = (
    "method",
    "ratio",
    "of",
    "layers",
    "align",
    "seed",
    "importance",
    "search",
    "granularity",
)


class _Run:
    """One run: its open model, its settings, and what it has found so far."""

    def __init__(
        self,
        model: str | Path | nn.Module,
        config: PruneConfig,
        tokenizer: Any,
        progress: Progress | None,
    ) -> None:
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._notes: list[str] = []
        self._progress = progress or Quiet()
        self._model = model
        self._tokenizer = tokenizer
        self._text: Tensor | None = None
        self._calibrated: Windows | None = None
        self.opened = open_model(model)
        self.config = config.model_copy(update={"device": str(resolve_device(config.device))})
        if not self.opened.declared:
            prove(self.opened)
            self.note(
                f"nobody declared the layout of {self.opened.config.model_type!r}: its coupled"
                " structures were traced from its code, and hold on a small model of it"
            )

    @cached_property
    def structure(self) -> Structure:
        return selected(self.opened, self.config.granularity)

    @cached_property
    def source(self) -> StreamedModel:
        return self.opened.streamed(device=self.config.device, dtype=self.config.dtype)

    @property
    def windows(self) -> Windows:
        """The calibration windows, read when they are first needed; the settings then name them."""
        if self._calibrated is None:
            windows = stages.calibration_windows(
                self.opened, self.config, tokenizer=self._tokenizer, note=self.note
            )
            count, length = windows.ids.shape
            if count < self.config.samples:
                self.note(
                    f"{windows.source} gives {count} calibration windows of {length} tokens, not"
                    f" the {self.config.samples} asked for"
                )
            self._calibrated = windows
            self.config = self.config.model_copy(
                update={"calibration": windows.source, "length": length}
            )
        return self._calibrated

    def note(self, message: str) -> None:
        self._notes.append(message)
        self._progress.note(message)

    def read_evaluation_text(self) -> None:
        """Read the text for perplexity before the long work: a slip there should not cost it."""
        config = self.config
        if config.evaluate == "spare":
            spare = self.windows.spare[: config.evaluate_tokens or stages.SPARE_TOKENS]
            self._text = known_ids(spare, self.opened)
        elif config.evaluate != "none":
            self._text = stages.evaluation_text(
                self.opened,
                config.evaluate,
                tokenizer=self._tokenizer,
                tokens=config.evaluate_tokens,
            )

    def statistics(self, needs: Iterable[str]) -> Statistics:
        needs = set(needs)
        if not needs:
            return Statistics()
        windows = self.windows
        with self._timed("statistics"):
            return stages.statistics(
                self.source, self.structure, windows, needs, self.config, progress=self._progress
            )

    def plan(self) -> tuple[Plan, Statistics]:
        config = self.config
        importance = config.importance_name
        repair = REPAIRS[config.repair_name]
        statistics = self.statistics({*statistics_needed(IMPORTANCE[importance]), *repair.needs})
        with self._timed("scores and search"):
            found = stages.scores(
                self.structure,
                importance,
                self.opened.weights,
                statistics,
                seed=config.seed,
                layers=stages.limits_of(self.structure, config).layers,
                square_attention=config.square_attention,
                progress=self._progress,
            )
            keep = stages.kept_units(self.structure, found, config)
        return self._recorded(keep), statistics

    def carry_out(
        self, plan: Plan, statistics: Statistics, folder: Path | None, out: Path | None
    ) -> Result:
        """Cut, repair, evaluate; write into `folder` if there is one."""
        with self._timed("cut"):
            form = self._cut(plan, statistics)
        if folder is not None:
            check_space(folder, form)
        numbers = self.sizes(plan)
        after = sum(spec.elements for spec in form.weights.specs.values())
        numbers["parameters"] = {"before": self.structure.parameters, "after": after}
        numbers |= self._evaluated(form)
        if folder is not None:
            with self._timed("write"):
                size = write_model(folder, form)
                copy_companions(
                    folder,
                    self.opened.folder,
                    tokenizer=tokenizer_to_write(self.opened, self._tokenizer, self.note),
                    model=self._model,
                    adapted=self.opened.adapter is not None,
                )
            numbers["bytes"] = {"before": bytes_before(self.opened), "after": size}
            write_record(
                folder,
                self.opened,
                self.structure,
                self.config,
                plan,
                numbers,
                self._calibrated,
                stock=form.stock,
            )
        return self.result(plan, numbers, form, out)

    def sizes(self, plan: Plan) -> dict[str, Any]:
        """Parameters before and after, as the plan alone gives them (no bias added)."""
        removed = plan.removed_parameters(self.structure)
        total, prunable = self.structure.parameters, self.structure.prunable
        return {
            "parameters": {"before": total, "after": total - removed},
            "prunable_parameters": {"before": prunable, "after": prunable - removed},
            "removed_share": removed / max(prunable, 1),
        }

    def result(
        self, plan: Plan, numbers: Mapping[str, Any], form: Form | None, out: Path | None
    ) -> Result:
        seconds = {**self._seconds, "total": time.monotonic() - self._started}
        return Result(
            self.config, self.structure, plan, numbers, seconds, form, out, tuple(self._notes)
        )

    def _recorded(self, keep: Mapping[str, tuple[int, ...]]) -> Plan:
        config = self.config
        calibration = {
            name: value
            for name in ("calibration", "samples", "length", "seed")
            if (value := getattr(config, name)) is not None
        }
        settings = {
            **{name: getattr(config, name) for name in _RECORDED},
            "importance": config.importance_name,
            "search": config.search_name,
        }
        return Plan(
            keep,
            self.structure.architecture,
            self.structure.weights,
            config.repair_name,
            calibration,
            settings,
        )

    def _cut(self, plan: Plan, statistics: Statistics) -> Form:
        opened, structure = self.opened, self.structure
        added = stages.added_biases(
            structure, plan, self.config.repair_name, opened.weights, statistics
        )
        pruned = PrunedWeights(opened.weights, structure, plan, added)
        return pruned_form(opened.family, opened.raw_config, opened.config, structure, plan, pruned)

    def _evaluated(self, form: Form) -> dict[str, Any]:
        """Perplexity before and after."""
        text, config = self._text, self.config
        if text is None:
            return {}
        lengths = [length for length in window_lengths(self.opened.context) if length <= len(text)]
        if not lengths:
            self.note("too little text to take perplexity on; name one: --evaluate FILE.txt")
            return {}
        after = StreamedModel(
            form.empty(self.source.dtype),
            self.opened.family,
            form.weights,
            self.source.device,
        )
        with self._timed("perplexity"):
            found = [
                stages.perplexities(
                    source, text, lengths, config.batch, self._progress, f"perplexity {when}"
                )
                for when, source in (("before", self.source), ("after", after))
            ]
        spare = f"a part of {config.calibration} that calibration did not use"
        return {
            "perplexity": [
                {"window": b.window, "tokens": b.tokens, "before": b.value, "after": a.value}
                for b, a in zip(*found, strict=True)
            ],
            "evaluation": {
                "text": spare if config.evaluate == "spare" else config.evaluate,
                "sha256": token_hash(text),
            },
        }

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of a stage, in seconds."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self._seconds[stage] = self._seconds.get(stage, 0.0) + spent


def _name(model: str | Path | nn.Module) -> str:
    return "live module" if isinstance(model, nn.Module) else str(model)


def _path(out: str | Path | None) -> Path | None:
    return None if out is None else Path(out).expanduser()
