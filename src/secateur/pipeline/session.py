"""One run: an open model, its settings, and what has been gathered for it so far."""

import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from ..checkpoint import real_path
from ..config import PruneConfig
from ..data import Beginning, Text, Windows, beginning
from ..errors import SecateurError
from ..evaluation import Perplexity, window_lengths
from ..export import Form, copy_companions, proved, pruned_form, with_around, write_model
from ..models import LIVE, StreamedModel, open_model, resolve_device
from ..paths import expanded
from ..progress import Progress, Quiet
from ..report import engine_notes
from ..search import Limits, one_by_one
from ..stats import Statistics, collect, collect_gradients
from ..structure import Axis, Plan, Structure
from ..surgery import REPAIRS, PrunedWeights
from . import stages
from .checks import (
    check_space,
    idle_settings,
    known_ids,
    reading_notes,
    selected,
    tokenizer_class,
    tokenizer_to_write,
)
from .choice import budget_of, kept_units, limits_of
from .estimate import Estimate, fused_scores, inputs_needed, split_windows, terms_needed
from .held_out import HeldOut, compared, streamed
from .look import bytes_before
from .record import write_record
from .result import Result
from .stock import form_facts, form_of, keep_to_stock

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
    "stock",
    "seed",
    "importance",
    "fusion",
    "fine",
    "tau",
    "probes",
    "splits",
    "shrinkage",
    "scope",
    "members",
    "scale",
    "search",
    "rescore",
    "granularity",
    "target",
    "damping",
)

# What a plan may say of the calibration text that its repair is done anew on.
_CALIBRATION = ("calibration", "field", "samples", "length", "bos", "seed")

# Settings that decide what the scores of given axes are.
_SCORED = (
    "importance_name",
    "fusion_name",
    "fine",
    "tau",
    "probes",
    "splits",
    "shrinkage",
    "scope",
    "members",
    "square_attention",
    "seed",
)


class Run:
    """One run: its open model, its settings, and what it has found so far."""

    def __init__(
        self,
        model: str | Path | nn.Module,
        config: PruneConfig,
        tokenizer: Any,
        progress: Progress | None,
        texts: Mapping[str, Any] | None = None,
    ) -> None:
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._notes: list[str] = []
        self._progress = progress or Quiet()
        self._model = model
        self._tokenizer = tokenizer
        self._texts = texts or {}
        self.text_of_plan = False  # not the user named it
        self._held_out: HeldOut | None = None
        self._calibrated: Windows | None = None
        # by kind of pass, names of its axes, and what was asked for
        self._gathered: dict[tuple[str, frozenset[str], frozenset[str]], Statistics] = {}
        self._begin: Beginning | None = None
        self._estimated: dict[Any, Estimate] = {}
        self._before: list[Perplexity] = []
        self._numbers: dict[str, Any] = {}
        self._even: dict[str, PruneConfig] = {}
        self.opened = open_model(model, **config.reading)
        for message in (
            *self.opened.notes,
            *reading_notes(self.opened, config),
            *idle_settings(config),
        ):
            self.note(message)
        if self.opened.packed:
            self.note(
                "the weights are in few bits, and are written in floating point; after the cut,"
                " secateur recover --with groupwise writes few bits"
            )
        self.config = config.model_copy(update={"device": str(resolve_device(config.device))})
        if not self.opened.declared:
            self.opened, _ = proved(self.opened)
            self.note(
                f"nobody declared the layout of {self.opened.config.model_type!r}: its coupled"
                " structures were traced from its code, and hold on a small model of it"
            )
            for left in self.opened.left:
                self.note(f"{left.module} stays whole: {left.reason}")
        self._keep_to_stock()

    def _keep_to_stock(self) -> None:
        """With --stock, settings by which the search finds what the family's class holds."""
        if not self.config.stock:
            return
        asked = self.config.model_dump_json()
        if asked not in self._even:
            self._even[asked] = keep_to_stock(self.opened, self.structure, self.config, self.note)
        self.config = self._even[asked]

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
                self.opened,
                self.config,
                tokenizer=self._tokenizer,
                note=self.note,
                given=self._texts.get("calibration"),
                progress=self._progress,
            )
            count, length = windows.ids.shape
            if count < self.config.samples:
                self.note(
                    f"{windows.source} gives {count} calibration windows of {length} tokens, not"
                    f" the {self.config.samples} asked for"
                )
            self._calibrated = windows
            update: dict[str, Any] = {"calibration": windows.source, "length": length}
            if windows.begin.mode != "given":
                update["bos"], self._begin = windows.begin.mode, windows.begin
            self.config = self.config.model_copy(update=update)
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
            "bos": self._calibrated.begin.to_json(),
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
            text = Text(known_ids(spare, self.opened), self.windows.begin)
            name = f"a part of {self.config.calibration} that calibration did not use"
        else:
            name = config.evaluate
            text = stages.evaluation_text(
                self.opened,
                config.evaluate,
                tokenizer=self._tokenizer,
                tokens=config.evaluate_tokens,
                window=min(window_lengths(self.opened.context)),
                field=config.field,
                bos=config.bos,
                given=self._texts.get("evaluate"),
                note=self.note,
                progress=self._progress,
            )
            self._begin = text.begin
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
        found = Statistics()
        if inputs:
            found.include(self._gathered_inputs(axes, inputs))
        if terms:
            found.include(self._gathered_terms(axes, terms, asking))
        return found

    def _gathered_inputs(self, axes: Sequence[Axis], needs: set[str]) -> Statistics:
        missing = self._missing("inputs", axes, needs)
        if missing:
            windows = self.windows
            with self._timed("statistics"):
                self._gathered["inputs", *missing] = stages.statistics(
                    self.source, axes, windows, missing[1], self.config, progress=self._progress
                )
        return self._collected("inputs")

    def _gathered_terms(self, axes: Sequence[Axis], needs: set[str], asking: bool) -> Statistics:
        missing = self._missing(f"terms {asking}", axes, needs)
        if missing:
            scored, _ = split_windows(self.windows.ids, self.config.fusion_name)
            with self._timed("gradients"):
                walk = stages.walk(self.source, scored, self.config)
                self._gathered[f"terms {asking}", *missing] = collect_gradients(
                    walk, axes, missing[1], progress=self._progress
                )
        return self._collected(f"terms {asking}")

    def _missing(
        self, kind: str, axes: Sequence[Axis], needs: set[str]
    ) -> tuple[frozenset[str], frozenset[str]] | None:
        """The axes and needs of a pass that still has to be made; None if there are all."""
        names = frozenset(axis.name for axis in axes)
        have = {
            need
            for (made, of, needed) in self._gathered
            if made == kind and names <= of
            for need in needed
        }
        return (names, frozenset(needs)) if needs - have else None

    def _collected(self, kind: str) -> Statistics:
        """All that passes of one kind have found."""
        found = Statistics()
        for (made, _, _), statistics in self._gathered.items():
            if made == kind:
                found.include(statistics)
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
            fine=config.fine,
            settings=config.fusion_settings,
            progress=self._progress,
        )

    def plan(self) -> tuple[Plan, Statistics]:
        """Which units stay, and the statistics that a repair may need."""
        config = self.config
        repair = REPAIRS[config.repair_name]
        if repair.fit is not None:
            _ = self.windows  # the plan says which
        if config.rescore:
            return self._recorded(self._rescored()), Statistics()
        statistics = self.gather(
            {*inputs_needed(config.importance_name), *repair.needs},
            terms_needed(config),
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

    def _rescored(self) -> dict[str, tuple[int, ...]]:
        """Whole layers go one by one; scores are those of the model without the ones before."""
        config, axes, name = self.config, self.fine, self.config.importance_name
        assert name is not None, "checked before the work"

        def scores(gone: frozenset[int]) -> Mapping[str, Tensor]:
            left = [axis for axis in axes if axis.layer not in gone]
            found = Statistics()
            if inputs := inputs_needed(name):
                walk = stages.walk(self.source, self.windows.ids, config, gone)
                found.include(collect(walk, left, inputs, progress=self._progress))
            if terms := terms_needed(config):
                walk = stages.walk(self.source, self.windows.ids, config, gone)
                found.include(collect_gradients(walk, left, terms, progress=self._progress))
            fine = stages.scores(
                left, name, self.opened.weights, found, seed=config.seed, members=config.members
            )
            return stages.coarse_scores(self.structure, fine)

        with self._timed("scores and search"):
            chosen = limits_of(self.structure, config).selected(self.structure.axes)
            budget = budget_of(self.structure, config)
            return {axis.name: () for axis in one_by_one(chosen, budget, scores)}

    def check_form(self, plan: Plan) -> Form:
        """The form that the folder will have, found before the repair.

        Raises:
            SecateurError: --stock, and the family's class does not hold it.
        """
        form = form_of(self.opened, self.structure, plan, self.config.repair_name)
        if self.config.stock and not form.stock:
            raise SecateurError(f"--stock: {form.why}.\nChange --ratio, or leave out --stock.")
        return form

    def say_form(self, plan: Plan, form: Form) -> None:
        """Put into the result which class loads it, and tell what other engines make of it."""
        self._numbers["form"] = form_facts(form)
        for message in engine_notes(self.structure, self.opened.weights.specs, form.weights.specs):
            self.note(message)
        if self.config.stock:
            of = "the whole model" if self.config.of == "model" else "them"
            self.note(
                f"--stock: {self.found(plan)['removed_share']:.1%} of the decoder's linears go; the"
                f" ratio asks for {self.config.ratio:.1%} of {of}"
            )

    def carry_out(
        self, plan: Plan, statistics: Statistics, folder: Path | None, out: Path | None
    ) -> Result:
        """Cut, repair, evaluate; write into `folder` if there is one."""
        if self.config.stock:
            self.check_form(plan)
        with self._timed("cut"):
            form = self._cut(plan, statistics)
        self.say_form(plan, form)
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
                    self.opened.companions,
                    tokenizer=tokenizer_to_write(self.opened, self._tokenizer, self.note),
                    model=self._model,
                    adapted=self.opened.writes_tokenizer,
                    read_as=tokenizer_class(self.opened, form),
                    note=self.note,
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
                form=form,
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
            **({"bos": self._begin.to_json()} if self._begin is not None else {}),
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
        config = self.config.model_copy(update={"bos": self._known_bos()})
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

    def _known_bos(self) -> str:
        """What `auto` comes to, whether or not tokens were read (without a tokenizer: itself)."""
        try:
            return beginning(self._tokenizer or self.opened.tokenizer, self.config.bos).mode
        except SecateurError:
            return self.config.bos

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
                    self.source,
                    structure,
                    opened.structures,
                    plan,
                    self.windows,
                    config,
                    progress=self._progress,
                )
            replaced = repaired.tensors
            self._numbers["repair"] = [dataclasses.asdict(one) for one in repaired.reports]
            for message in repaired.notes:
                self.note(message)
            for report in repaired.reports:
                for warning in report.warnings:
                    self.note(warning)
        pruned = PrunedWeights(opened.weights, structure, plan, added, replaced)
        # all granularities: what an earlier cut of others left is written down again
        form = pruned_form(
            opened.family, opened.raw_config, opened.config, opened.structures, plan, pruned
        )
        return with_around(form, opened, self.note)

    def _evaluated(self, form: Form) -> dict[str, Any]:
        """Perplexity before and after; the dense model's is taken once for all siblings."""
        held_out, source, batch = self._held_out, self.source, self.config.batch
        limit = stages.hidden_bytes(self.config.hidden_gib)
        if held_out is None:
            return {}
        if not held_out.lengths:
            self.note("too little text to take perplexity on; name one: --evaluate FILE.txt")
            return {}
        with self._timed("perplexity"):
            if not self._before:
                self._before += held_out.perplexities(
                    source, batch, self._progress, "before", limit=limit
                )
            cut = streamed(form, self.opened, source.dtype, source.device)
            after = held_out.perplexities(cut, batch, self._progress, "after", limit=limit)
        return {
            "perplexity": compared(self._before, after),
            "evaluation": held_out.to_json(),
        }

    def share(self, *, tokens: bool) -> None:
        """Make what siblings have in common: the dense model, and the windows if one needs them."""
        _ = self.source
        if tokens:
            _ = self.windows

    def sibling(self, config: PruneConfig) -> "Run":
        """A run on the same model and text with other settings: what was gathered is shared."""
        other = copy.copy(self)
        names = ("device", "calibration", "bos")
        kept = {name: getattr(self.config, name) for name in names}
        other.config = config.model_copy(update={**kept, "length": self.config.length})
        other.__dict__.pop("structure", None)
        other._started, other._seconds = time.monotonic(), {}
        other._notes, other._numbers = [], {}
        other._keep_to_stock()
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
        nearest = get_close_matches(other, _CALIBRATION, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise SecateurError(
            f"The plan's calibration names {other!r}.{hint} Expected"
            f" {', '.join(_CALIBRATION)} alone.\n"
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
    real_path(expanded(out, "--out"))
    return expanded(out)
