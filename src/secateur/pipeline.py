"""The stages in order; the only file that knows the order.

    open -> structure -> calibration -> statistics -> scores -> plan -> cut and repair -> evaluate
         -> write

Each stage is a function that can be called alone; `prune` and `apply` call them one after the
other and write everything into a folder that appears whole or not at all.
"""

import importlib.metadata
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from . import data
from .checkpoint import Weights, new_folder
from .config import PruneConfig, make_config, to_toml
from .errors import SecateurError
from .evaluation import Perplexity, perplexity, window_lengths
from .export import Form, copy_companions, model_card, pruned_form, write_model
from .importance import IMPORTANCE, score, statistics_needed
from .models import OpenModel, StreamedModel, filled, load, open_model, resolve_device
from .progress import Progress, Quiet
from .report import evaluation_line, layer_rows, number_rows, plan_difference
from .search import Limits, check_budget, search
from .stats import Statistics, Walk, collect
from .structure import Plan, Structure, parse_ranges
from .surgery import REPAIRS, PrunedWeights

# Windows shorter than this say little about attention; longer ones cost more than they add.
DEFAULT_LENGTH = 256
DEFAULT_CALIBRATION = "c4"
SPARE_TOKENS = 16384
_VERSIONS = ("secateur", "torch", "transformers", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Result:
    """What a run made: the plan, the numbers, and where the folder is (None: nothing written)."""

    config: PruneConfig
    structure: Structure
    plan: Plan
    numbers: Mapping[str, Any]
    seconds: Mapping[str, float]
    form: Form | None = None
    out: Path | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    def load(self) -> Any:
        """The pruned model, ready for `generate`: from the folder, or built in memory.

        Raises:
            SecateurError: it was a dry run.
        """
        if self.out is not None:
            return load(self.out)
        if self.form is None:
            raise SecateurError("A dry run makes no model. Run it without dry_run.")
        return filled(self.form.empty(), self.form.weights)

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors, for `--json`."""
        return {
            "out": str(self.out) if self.out else None,
            "settings": self.config.model_dump(),
            "results": dict(self.numbers),
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
            "kept": {axis.name: len(self.plan.kept(axis)) for axis in self.structure.axes},
        }


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
    name = "live module" if isinstance(model, nn.Module) else str(model)
    config = make_config(model=name, **settings)
    run = _Run(model, config, tokenizer, progress)
    with _target(out, force) as folder:
        plan, statistics = run.plan()
        if dry_run:
            return run.finish(plan, statistics, folder, _path(out), write=False)
        return run.finish(plan, statistics, folder, _path(out), write=True)


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
    name = "live module" if isinstance(model, nn.Module) else str(model)
    known = PruneConfig.model_fields
    recorded = {key: value for key, value in plan.settings.items() if key in known}
    merged = {**recorded, **plan.calibration, "repair": plan.repair, **settings, "model": name}
    run = _Run(model, make_config(**merged), tokenizer, progress)
    plan.check(run.structure)
    if plan.weights != run.structure.weights:
        run.note("the plan was made for other weights of the same architecture")
    with _target(out, force) as folder:
        return run.finish(plan, run.statistics(run.repair.needs), folder, _path(out), write=True)


def evaluate(
    model: str | Path | nn.Module,
    text: str,
    *,
    tokenizer: Any = None,
    tokens: int | None = None,
    batch: int = 8,
    device: str = "auto",
    dtype: str = "auto",
    windows: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Perplexity]:
    """Perplexity of any supported model, pruned or not, on `text`, one layer in memory at a time.

    Raises:
        SecateurError: bad input.
    """
    opened = open_model(model)
    source = opened.streamed(device=device, dtype=dtype)
    documents = data.documents(text, use="evaluation", seed=None)
    stream = data.running_text(
        documents, tokenizer or opened.tokenizer, source=text, at_most=tokens
    )
    lengths = _fitting(windows or window_lengths(opened.context), opened.context, len(stream), text)
    return _perplexities(source, stream, lengths, batch, progress or Quiet(), "perplexity")


def read_plan(path: str | Path) -> Plan:
    """Read a plan.json, or the one in a folder.

    Raises:
        SecateurError: no such file, or not a plan.
    """
    path = Path(path).expanduser()
    file = path / "plan.json" if path.is_dir() else path
    try:
        return Plan.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SecateurError(
            f"Cannot read the plan {file}: {getattr(error, 'strerror', None) or error}.\n"
            "Make one: secateur prune MODEL --ratio 0.2 --dry-run --out DIR"
        ) from error


def inspect(folder: str | Path, against: str | Path | None = None) -> dict[str, Any]:
    """What a folder holds: facts, and one row a layer; `against` compares the plans of two.

    Raises:
        SecateurError: neither a supported model nor a plan.
    """
    folder = Path(folder).expanduser()
    plan = read_plan(folder) if (folder / "plan.json").is_file() or folder.is_file() else None
    facts: dict[str, Any] = {}
    layers: list[dict[str, Any]] = []
    if (folder / "config.json").is_file() or plan is None:
        opened = open_model(folder)
        structure = opened.structure
        facts = {
            "class": opened.raw_config.get("architectures", ["?"])[0],
            "family": structure.family,
            "parameters": f"{structure.parameters:,}",
            "decoder linears, parameters": f"{structure.prunable:,}",
            "weights on disk, MB": f"{_bytes_before(opened) / 1e6:,.1f}",
            "context, tokens": opened.context,
        }
        if plan is None or against is None:
            whole = Plan({}, structure.architecture, structure.weights)
            layers = [
                {"layer": layer, "attention heads (KV)": heads, "MLP width": width}
                for layer, heads, width in layer_rows(structure, whole)
            ]
    if plan is not None:
        facts |= {key: value for key, value in plan.settings.items() if value is not None}
        facts["repair"] = plan.repair
    if against is not None:
        if plan is None:
            raise SecateurError(f"{folder} has no plan.json to compare.")
        layers = plan_difference(plan, read_plan(against))
    elif not layers and plan is not None:
        layers = [{"axis": name, "kept": len(units)} for name, units in plan.keep.items()]
    return {"facts": facts, "layers": layers}


def calibration_windows(
    opened: OpenModel,
    config: PruneConfig,
    *,
    tokenizer: Any = None,
    note: Callable[[str], None] | None = None,
) -> data.Windows:
    """The calibration stage: windows of tokens, as the settings say.

    Raises:
        SecateurError: no such text, too little of it, or windows longer than the context.
    """
    length = config.length or min(DEFAULT_LENGTH, opened.context)
    if length > opened.context:
        raise SecateurError(
            f"--length {length} is longer than the context of the model, {opened.context} tokens."
            f"\nType --length {opened.context} or less."
        )
    tokenizer = tokenizer or opened.tokenizer
    spare = config.evaluate == "spare"
    if config.calibration == "self":
        documents: Iterable[Any] = _own_text(opened, config, length)
        choice = 1
    else:
        source = config.calibration or DEFAULT_CALIBRATION
        documents = data.documents(source, use="calibration", seed=config.seed)
        choice = data.CHOICE
    make: dict[str, Any] = {
        "samples": config.samples,
        "length": length,
        "seed": config.seed,
        "spare": spare,
    }
    source = config.calibration or DEFAULT_CALIBRATION
    try:
        return data.sample_windows(documents, tokenizer, source=source, choice=choice, **make)
    except SecateurError as error:
        if config.calibration is not None:
            raise
        if note is not None:
            note(
                f"{str(error).splitlines()[0]}\nCalibrating on the English text in this package"
                " instead; a text like what the model will read is better: --calibration FILE.txt"
            )
    documents = data.documents(data.EMBEDDED, use="calibration", seed=config.seed)
    return data.sample_windows(documents, tokenizer, source=data.EMBEDDED, choice=choice, **make)


def scores(
    structure: Structure,
    importance: str,
    weights: Weights,
    statistics: Statistics,
    *,
    seed: int,
    layers: tuple[int, ...] | None = None,
    square_attention: bool = False,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The scoring stage: [unit, width] by axis, for the axes of `layers` (None: all)."""
    chosen = IMPORTANCE[importance]
    axes = Limits(layers).selected(structure.axes)
    found: dict[str, Tensor] = {}
    for axis in (progress or Quiet()).track(axes, "scores", len(axes), "axis"):
        weight = weights.tensor(axis.consumer.tensor) if "weight" in chosen.needs else None
        tally: Any = statistics.tallies.get(axis.name, {})
        value = score(chosen, axis, weight, tally, seed=seed)
        found[axis.name] = value**2 if square_attention and axis.kind == "attention" else value
    return found


def added_biases(
    structure: Structure, plan: Plan, repair: str, weights: Weights, statistics: Statistics
) -> dict[str, Tensor]:
    """The repair stage: what is added to the consumers' biases, by tensor name."""
    biases: dict[str, Tensor] = {}
    for axis in structure.axes if REPAIRS[repair].needs else ():
        if not plan.removed(axis):
            continue
        weight = weights.tensor(axis.consumer.tensor)
        bias = REPAIRS[repair].added_bias(axis, plan, weight, statistics[axis.name])
        if bias is not None:
            biases[f"{axis.consumer.module}.bias"] = bias
    return biases


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
        self._progress = progress or Quiet()
        self._model = model
        self._tokenizer = tokenizer
        self._windows: data.Windows | None = None
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.opened = open_model(model)
        self.structure = self.opened.structure
        self.config = config.model_copy(update={"device": str(resolve_device(config.device))})
        self.layers = _layers(config.layers, self.structure)
        self.repair = REPAIRS[config.repair_name]
        self._source = self.opened.streamed(device=self.config.device, dtype=config.dtype)

    def note(self, message: str) -> None:
        self.notes.append(message)
        self._progress.note(message)

    @property
    def windows(self) -> data.Windows:
        if self._windows is None:
            windows = calibration_windows(
                self.opened, self.config, tokenizer=self._tokenizer, note=self.note
            )
            if len(windows.ids) < self.config.samples:
                self.note(
                    f"{windows.source} gives {len(windows.ids)} calibration windows of"
                    f" {windows.ids.shape[1]} tokens, not the {self.config.samples} asked for"
                )
            self._windows = windows
            self.config = self.config.model_copy(
                update={"calibration": windows.source, "length": windows.ids.shape[1]}
            )
        return self._windows

    def statistics(self, needs: Iterable[str]) -> Statistics:
        needs = set(needs)
        if not needs:
            return Statistics()
        with self._timed("statistics"):
            walk = Walk(self._source, self.windows.ids, batch=self.config.batch, limit=self._limit)
            axes = Limits(self.layers).selected(self.structure.axes)
            return collect(walk, axes, needs, progress=self._progress)

    def plan(self) -> tuple[Plan, Statistics]:
        config = self.config
        axes = self.structure.axes
        whole = self.structure.parameters if config.of == "model" else self.structure.prunable
        budget = config.ratio * whole
        limits = Limits(self.layers, config.align)
        check_budget(axes, limits, budget)
        needs = statistics_needed(IMPORTANCE[config.importance_name])
        statistics = self.statistics({*needs, *self.repair.needs})
        with self._timed("scores and search"):
            found = scores(
                self.structure,
                config.importance_name,
                self.opened.weights,
                statistics,
                seed=config.seed,
                layers=self.layers,
                square_attention=config.square_attention,
                progress=self._progress,
            )
            removed = search(
                config.search_name,
                axes,
                found,
                budget,
                limits=limits,
                attention_units=config.attention_units,
            )
        keep = {
            name: tuple(sorted(set(range(self.structure.by_name[name].units)) - set(gone)))
            for name, gone in removed.items()
        }
        return self._record(keep), statistics

    def finish(
        self,
        plan: Plan,
        statistics: Statistics,
        folder: Path | None,
        out: Path | None,
        *,
        write: bool,
    ) -> Result:
        if not write:
            if folder is not None:
                (folder / "plan.json").write_text(plan.to_json(self.structure), encoding="utf-8")
            numbers = self._sizes(plan)
            return Result(
                self.config, self.structure, plan, numbers, self._total(), None, out, self.notes
            )
        with self._timed("cut"):
            form = self._cut(plan, statistics)
        numbers = {**self._sizes(plan), **self._evaluated(form)}
        parameters = sum(spec.elements for spec in form.weights.specs.values())
        numbers["parameters"] = {"before": self.structure.parameters, "after": parameters}
        if folder is not None:
            _check_space(folder, form)
            with self._timed("write"):
                after = write_model(folder, form)
                copy_companions(
                    folder, self.opened.folder, tokenizer=self._tokenizer, model=self._model
                )
            numbers["bytes"] = {"before": _bytes_before(self.opened), "after": after}
            self._write_record(folder, form, plan, numbers)
        return Result(
            self.config, self.structure, plan, numbers, self._total(), form, out, self.notes
        )

    @property
    def _limit(self) -> int:
        return int(self.config.hidden_gib * 2**30)

    def _record(self, keep: Mapping[str, tuple[int, ...]]) -> Plan:
        windows = self._windows
        calibration = (
            {}
            if windows is None
            else {
                "calibration": windows.source,
                "samples": self.config.samples,
                "length": windows.ids.shape[1],
                "seed": self.config.seed,
            }
        )
        keys = ("method", "ratio", "of", "layers", "align", "seed")
        settings = {key: getattr(self.config, key) for key in keys}
        settings["importance"] = self.config.importance_name
        settings["search"] = self.config.search_name
        return Plan(
            keep,
            self.structure.architecture,
            self.structure.weights,
            self.config.repair_name,
            calibration,
            settings,
        )

    def _cut(self, plan: Plan, statistics: Statistics) -> Form:
        opened = self.opened
        added = added_biases(
            self.structure, plan, self.config.repair_name, opened.weights, statistics
        )
        pruned = PrunedWeights(opened.weights, self.structure, plan, added)
        return pruned_form(
            opened.family, opened.raw_config, opened.config, self.structure, plan, pruned
        )

    def _evaluated(self, form: Form) -> dict[str, Any]:
        """Perplexity before and after, on the text that the settings name."""
        if self.config.evaluate == "none":
            return {}
        with self._timed("perplexity"):
            text, where = self._evaluation_text()
            lengths = [n for n in window_lengths(self.opened.context) if n <= len(text)]
            if not lengths:
                self.note("too little text left to take perplexity on: add --evaluate FILE.txt")
                return {}
            after = StreamedModel(
                form.empty(self._source.dtype),
                self.opened.family.layers,
                form.weights,
                self._source.device,
            )
            found = {
                when: _perplexities(
                    source, text, lengths, self.config.batch, self._progress, f"perplexity {when}"
                )
                for when, source in (("before", self._source), ("after", after))
            }
        return {
            "perplexity": [
                {"window": b.window, "tokens": b.tokens, "before": b.value, "after": a.value}
                for b, a in zip(found["before"], found["after"], strict=True)
            ],
            "evaluation": {"text": where, "sha256": data.token_hash(text)},
        }

    def _evaluation_text(self) -> tuple[Tensor, str]:
        config = self.config
        if config.evaluate == "spare":
            text = self.windows.spare[: config.evaluate_tokens or SPARE_TOKENS]
            return text, f"a part of {self.windows.source} that calibration did not use"
        documents = data.documents(config.evaluate, use="evaluation", seed=None)
        tokenizer = self._tokenizer or self.opened.tokenizer
        text = data.running_text(
            documents, tokenizer, source=config.evaluate, at_most=config.evaluate_tokens
        )
        return text, config.evaluate

    def _sizes(self, plan: Plan) -> dict[str, Any]:
        removed = plan.removed_parameters(self.structure)
        prunable = self.structure.prunable
        return {
            "parameters": {
                "before": self.structure.parameters,
                "after": self.structure.parameters - removed,
            },
            "prunable_parameters": {"before": prunable, "after": prunable - removed},
            "removed_share": removed / max(prunable, 1),
        }

    def _write_record(
        self, folder: Path, form: Form, plan: Plan, numbers: Mapping[str, Any]
    ) -> None:
        (folder / "plan.json").write_text(plan.to_json(self.structure), encoding="utf-8")
        record: dict[str, Any] = {
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in _VERSIONS},
            },
            "results": dict(numbers),
        }
        if self._windows is not None:
            record["calibration"] = {
                "windows": len(self._windows.ids),
                "tokens_sha256": self._windows.sha256,
            }
        (folder / "run.toml").write_text(to_toml(self.config, record), encoding="utf-8")
        card = model_card(
            base=Path(self.opened.source).name or self.opened.source,
            architecture=self.opened.family.model,
            stock=form.stock,
            settings=_card_settings(self.config),
            numbers=number_rows(numbers),
            layers=layer_rows(self.structure, plan),
            evaluated_on=evaluation_line(numbers),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _timed(self, stage: str) -> "_Timer":
        return _Timer(self.seconds, stage)

    def _total(self) -> dict[str, float]:
        return {**self.seconds, "total": time.monotonic() - self._started}


class _Timer:
    """Adds the wall time of a stage, in seconds, to a dictionary."""

    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *error: object) -> None:
        spent = time.monotonic() - self._started
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + spent


def _path(out: str | Path | None) -> Path | None:
    return None if out is None else Path(out).expanduser()


def _target(out: str | Path | None, force: bool) -> Any:
    path = _path(out)
    return nullcontext(None) if path is None else new_folder(path, force=force)


def _layers(text: str | None, structure: Structure) -> tuple[int, ...] | None:
    if text is None:
        return None
    layers = parse_ranges(text, what="--layers", size=structure.layers)
    if not layers:
        raise SecateurError(
            f"--layers names no layer; expected a range like 0-{structure.layers - 1}."
        )
    return layers


def _perplexities(
    source: StreamedModel,
    text: Tensor,
    lengths: Sequence[int],
    batch: int,
    progress: Progress,
    stage: str,
) -> list[Perplexity]:
    """One value a window length; batches of long windows are smaller, so that memory stays even."""
    found = []
    for length in lengths:
        windows = max(1, batch * DEFAULT_LENGTH // length)
        found.append(
            perplexity(
                source,
                data.cut(text, length),
                batch=windows,
                progress=progress,
                stage=f"{stage}, {length}",
            )
        )
    return found


def _fitting(lengths: Sequence[int], context: int, tokens: int, text: str) -> list[int]:
    """The window lengths that the model and the text allow; an error if there is none."""
    if min(lengths) < 2 or max(lengths) > context:
        raise SecateurError(
            f"--windows must lie between 2 and the context of the model, {context} tokens."
        )
    fitting = [length for length in lengths if length <= tokens]
    if not fitting:
        raise SecateurError(
            f"The text of {text} has {tokens} tokens, fewer than one window of {min(lengths)}.\n"
            "Give more text, or smaller --windows."
        )
    return fitting


def _own_text(opened: OpenModel, config: PruneConfig, length: int) -> Iterable[Tensor]:
    """The model's own samples; it is loaded whole for that, as nothing else is."""
    if opened.folder is None:
        raise SecateurError("A live model is not sampled from; give calibration a text.")
    model = load(opened.folder, dtype=config.dtype).to(config.device)
    return data.generated_documents(model, length=length, batch=config.batch, seed=config.seed)


def _check_space(folder: Path, form: Form) -> None:
    needed = sum(spec.bytes for spec in form.weights.specs.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SecateurError(
            f"The pruned weights take {needed / 2**20:,.0f} MiB, but {folder.parent} has"
            f" {free / 2**20:,.0f} MiB free.\nFree some, or choose another --out."
        )


def _bytes_before(opened: OpenModel) -> int:
    if opened.folder is not None:
        return sum(file.stat().st_size for file in opened.folder.glob("*.safetensors"))
    return sum(spec.bytes for spec in opened.weights.specs.values())


def _card_settings(config: PruneConfig) -> dict[str, Any]:
    settings = {key: value for key, value in config.model_dump().items() if value is not None}
    return settings | {
        "importance": config.importance_name,
        "search": config.search_name,
        "repair": config.repair_name,
    }
