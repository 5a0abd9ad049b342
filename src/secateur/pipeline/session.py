"""One run: an open model, its settings, and what has been gathered for it so far."""

import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from ..checkpoint import real_path
from ..config import PruneConfig
from ..data import Windows, token_hash
from ..errors import SecateurError
from ..evaluation import Perplexity, window_lengths
from ..export import Form, copy_companions, prove, pruned_form, write_model
from ..models import LIVE, StreamedModel, open_model, resolve_device
from ..progress import Progress, Quiet
from ..search import Limits
from ..stats import Statistics, collect_gradients
from ..structure import Axis, Plan, Structure
from ..surgery import REPAIRS, PrunedWeights
from . import stages
from .checks import check_space, idle_settings, known_ids, selected, tokenizer_to_write
from .choice import kept_units, limits_of
from .estimate import Estimate, fused_scores, inputs_needed, split_windows, terms_needed
from .held_out import HeldOut, compared, streamed
from .look import bytes_before
from .record import write_record
from .result import Result

# Settings that a plan records because they say how it came about; applying it needs none of them.
RECORDED = (
    "method",
    "ratio",
    "of",
    "layers",
    "attention_layers",
    "mlp_layers",
    "attention_units",
    "attention_ratio",
    "align",
    "seed",
    "importance",
    "fusion",
    "members",
    "scale",
    "search",
    "granularity",
    "target",
    "damping",
)

# What a plan may say of the calibration text that its repair is done anew on.
_CALIBRATION = ("calibration", "samples", "length", "seed")

# Settings that decide what the scores of given axes are.
_SCORED = ("importance_name", "fusion_name", "members", "square_attention", "seed")


class Run:
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
        self.text_of_plan = False  # not the user named it
        self._held_out: HeldOut | None = None
        self._calibrated: Windows | None = None
        self._gathered: dict[Any, Statistics] = {}
        self._estimated: dict[Any, Estimate] = {}
        self._before: list[Perplexity] = []
        self._numbers: dict[str, Any] = {}
        self.opened = open_model(model)
        for message in idle_settings(config):
            self.note(message)
        if self.opened.packed:
            self.note(
                "the weights are in few bits, and are written in floating point; after the cut,"
                " secateur recover --with groupwise writes few bits"
            )
        self.config = config.model_copy(update={"device": str(resolve_device(config.device))})
        if not self.opened.declared:
            prove(self.opened)
            self.note(
                f"nobody declared the layout of {self.opened.config.model_type!r}: its coupled"
                " structures were traced from its code, and hold on a small model of it"
            )

    @cached_property
    def structure(self) -> Structure:
        """The axes of the granularities in force."""
        return selected(self.opened, self.config.granularity)

    @property
    def fine(self) -> list[Axis]:
        """The axes that scores are of: a coarse unit's score is made of theirs."""
        limits = limits_of(self.structure, self.config)
        return stages.fine_axes(self.structure, self.opened.structures, limits)

    @cached_property
    def source(self) -> StreamedModel:
        """The dense model, one layer at a time."""
        return self.opened.streamed(device=self.config.device, dtype=self.config.dtype)

    @property
    def windows(self) -> Windows:
        """The calibration windows, read when they are first needed; the settings then name them."""
        if self._calibrated is None:
            text = self.config.calibration
            if self.text_of_plan and text is not None and Path(text).expanduser().exists():
                self.note(f"the text {text} is read, which the plan names")
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

    @property
    def texts(self) -> tuple[str | None, str]:
        """The texts that are read, as they were named."""
        return self.config.calibration, self.config.evaluate

    @property
    def calibrated(self) -> dict[str, Any] | None:
        """Which calibration windows were read, if any were."""
        if self._calibrated is None:
            return None
        count, length = self._calibrated.ids.shape
        return {
            "text": self._calibrated.source,
            "windows": count,
            "length": length,
            "tokens_sha256": self._calibrated.sha256,
        }

    def note(self, message: str) -> None:
        """Tell the user, now and in the result."""
        self._notes.append(message)
        self._progress.note(message)

    def read_evaluation_text(self) -> None:
        """Read the text for perplexity before the long work: a slip there should not cost it."""
        config = self.config
        if config.evaluate == "none":
            return
        if config.evaluate == "spare":
            spare = self.windows.spare[: config.evaluate_tokens or stages.SPARE_TOKENS]
            text = known_ids(spare, self.opened)
            name = f"a part of {self.config.calibration} that calibration did not use"
        else:
            name = config.evaluate
            text = stages.evaluation_text(
                self.opened,
                config.evaluate,
                tokenizer=self._tokenizer,
                tokens=config.evaluate_tokens,
                window=min(window_lengths(self.opened.context)),
            )
        self._held_out = HeldOut(text, name, self.opened.context)

    def gather(
        self, inputs: Iterable[str], terms: Iterable[str], *, everywhere: bool = False
    ) -> Statistics:
        """Statistics of inputs and gradient terms, each collected once for all that asks for it.

        `everywhere`: of all layers, not of those alone that may lose units.
        """
        axes = stages.fine_axes(self.structure, self.opened.structures, Limits())
        axes = axes if everywhere else self.fine
        inputs, terms = set(inputs), set(terms)
        asking = stages.asks_loss(self.config.fusion_name)
        if inputs and "inputs" not in self._gathered:
            windows = self.windows
            with self._timed("statistics"):
                self._gathered["inputs"] = stages.statistics(
                    self.source, axes, windows, inputs, self.config, progress=self._progress
                )
        if terms and ("terms", asking) not in self._gathered:
            scored, _ = split_windows(self.windows.ids, self.config.fusion_name)
            with self._timed("gradients"):
                walk = stages.walk(self.source, scored, self.config)
                self._gathered["terms", asking] = collect_gradients(
                    walk, axes, terms, progress=self._progress
                )
        found = Statistics()
        found.include(self._gathered.get("inputs", Statistics()))
        found.include(self._gathered.get(("terms", asking), Statistics()))
        return found

    def estimate(self, statistics: Statistics) -> Estimate:
        """Scores of the fine axes, made once for all runs that share them."""
        axes = tuple(axis.name for axis in self.fine)
        key = (axes, *(getattr(self.config, name) for name in _SCORED))
        if key not in self._estimated:
            self._estimated[key] = self._estimate(statistics)
        return self._estimated[key]

    def _estimate(self, statistics: Statistics) -> Estimate:
        config = self.config
        if config.fusion_name is None:
            assert config.importance_name is not None, "there is a score or a fusion"
            scores = stages.scores(
                self.fine,
                config.importance_name,
                self.opened.weights,
                statistics,
                seed=config.seed,
                members=config.members,
                square_attention=config.square_attention,
                progress=self._progress,
            )
            return Estimate(scores)
        _, asking = split_windows(self.windows.ids, config.fusion_name)
        return fused_scores(
            config.fusion_name,
            self.fine,
            statistics,
            stages.walk(self.source, asking, config),
            seed=config.seed,
            progress=self._progress,
        )

    def plan(self) -> tuple[Plan, Statistics]:
        """Which units stay, and the statistics that a repair may need."""
        config = self.config
        repair = REPAIRS[config.repair_name]
        if repair.fit is not None:
            _ = self.windows  # the plan says which
        statistics = self.gather(
            {*inputs_needed(config.importance_name), *repair.needs},
            terms_needed(config.importance_name, config.fusion_name),
        )
        with self._timed("scores and search"):
            found = self.estimate(statistics)
            scores = stages.coarse_scores(self.structure, found.scores)
            samples = stages.coarse_samples(self.structure, found.samples)
            keep = kept_units(self.structure, scores, config, samples, self.opened.weights)
            if found.blend is not None:
                self._numbers["blend"] = found.blend
        plan = self._recorded(keep)
        if config.ratio > 0 and not any(plan.removed(axis) for axis in self.structure.axes):
            self.note("nothing is removed: the ratio asks for less than one unit")
        return plan, statistics

    def carry_out(
        self, plan: Plan, statistics: Statistics, folder: Path | None, out: Path | None
    ) -> Result:
        """Cut, repair, evaluate; write into `folder` if there is one."""
        with self._timed("cut"):
            form = self._cut(plan, statistics)
        if folder is not None:
            check_space(folder, form)
        numbers = self.found(plan)
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

    def found(self, plan: Plan) -> dict[str, Any]:
        """What scores and repairs said, and parameters before and after without added biases."""
        total, prunable = self.structure.parameters, self.structure.prunable
        left = PrunedWeights(self.opened.weights, self.structure, plan).specs
        lost = {
            name: spec.elements - (left[name].elements if name in left else 0)
            for name, spec in self.opened.weights.specs.items()
        }
        linears = {member.tensor for axis in self.opened.structure.axes for member in axis.members}
        removed = sum(lost[name] for name in linears)
        return {
            "parameters": {"before": total, "after": total - sum(lost.values())},
            "prunable_parameters": {"before": prunable, "after": prunable - removed},
            "removed_share": removed / max(prunable, 1),
            **self._numbers,
        }

    def result(
        self, plan: Plan, numbers: Mapping[str, Any], form: Form | None, out: Path | None
    ) -> Result:
        """What the caller gets."""
        seconds = {**self._seconds, "total": time.monotonic() - self._started}
        return Result(
            self.config, self.structure, plan, numbers, seconds, form, out, tuple(self._notes)
        )

    def _recorded(self, keep: Mapping[str, tuple[int, ...]]) -> Plan:
        config = self.config
        calibration = {
            name: value for name in _CALIBRATION if (value := getattr(config, name)) is not None
        }
        settings = {
            **{name: getattr(config, name) for name in RECORDED},
            "importance": config.importance_name,
            "fusion": config.fusion_name,
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
        opened, structure, config = self.opened, self.structure, self.config
        if config.repair_name != "none" and any(
            plan.removed(axis) and axis.granularity == "expert_channel" for axis in structure.axes
        ):
            self.note(f"experts are cut as they are: --repair {config.repair_name} mends the rest")
        added = stages.added_biases(structure, plan, config.repair_name, opened.weights, statistics)
        replaced: Mapping[str, Tensor] = {}
        if REPAIRS[config.repair_name].fit is not None:
            with self._timed("repair"):
                repaired = stages.fitted_tensors(
                    self.source, structure, plan, self.windows, config, progress=self._progress
                )
            replaced = repaired.tensors
            self._numbers["repair"] = [dataclasses.asdict(one) for one in repaired.reports]
            for report in repaired.reports:
                for warning in report.warnings:
                    self.note(warning)
        pruned = PrunedWeights(opened.weights, structure, plan, added, replaced)
        # all granularities: what an earlier cut of others left is written down again
        return pruned_form(
            opened.family, opened.raw_config, opened.config, opened.structures, plan, pruned
        )

    def _evaluated(self, form: Form) -> dict[str, Any]:
        """Perplexity before and after; the dense model's is taken once for all siblings."""
        held_out, source, batch = self._held_out, self.source, self.config.batch
        if held_out is None:
            return {}
        if not held_out.lengths:
            self.note("too little text to take perplexity on; name one: --evaluate FILE.txt")
            return {}
        with self._timed("perplexity"):
            if not self._before:
                self._before += held_out.perplexities(source, batch, self._progress, "before")
            cut = streamed(form, self.opened, source.dtype, source.device)
            after = held_out.perplexities(cut, batch, self._progress, "after")
        return {
            "perplexity": compared(self._before, after),
            "evaluation": {"text": held_out.name, "sha256": token_hash(held_out.text)},
        }

    def share(self, *, tokens: bool) -> None:
        """Make what siblings have in common: the dense model, and the windows if one needs them."""
        _ = self.source
        if tokens:
            _ = self.windows

    def sibling(self, config: PruneConfig) -> "Run":
        """A run on the same model and text with other settings: what was gathered is shared."""
        other = copy.copy(self)
        kept = {"device": self.config.device, "calibration": self.config.calibration}
        other.config = config.model_copy(update={**kept, "length": self.config.length})
        other.__dict__.pop("structure", None)
        other._started, other._seconds = time.monotonic(), {}
        other._notes, other._numbers = [], {}
        return other

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of a stage, in seconds."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self._seconds[stage] = self._seconds.get(stage, 0.0) + spent


def recorded_settings(plan: Plan) -> dict[str, Any]:
    """The settings that a plan has a say in: data, never code or anything of the machine.

    Raises:
        SecateurError: it names others where it says what to repair it with.
    """
    other = next((name for name in plan.calibration if name not in _CALIBRATION), None)
    if other is not None:
        raise SecateurError(
            f"The plan's calibration names {other!r}; expected {', '.join(_CALIBRATION)} alone.\n"
            "Remove it from plan.json, and type what you want as an option."
        )
    recorded = {name: plan.settings[name] for name in RECORDED if name in plan.settings}
    return {**recorded, **plan.calibration}


def name_of(model: str | Path | nn.Module) -> str:
    """The model's name in the settings."""
    return LIVE if isinstance(model, nn.Module) else str(model)


@overload
def path_of(out: str | Path) -> Path: ...
@overload
def path_of(out: None) -> None: ...
def path_of(out: str | Path | None) -> Path | None:
    """A path that the user typed.

    Raises:
        SecateurError: there can be nothing at it.
    """
    if out is None:
        return None
    real_path(Path(out))
    return Path(out).expanduser()
