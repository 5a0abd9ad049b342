"""Recovery, from top to bottom: a pruned folder is trained, alone or right after the cut."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from ..arguments import a_flag, a_folder_or_name, a_progress, a_word, an_output, public
from ..checkpoint import real_path, token, training_file
from ..config import (
    READING,
    RECIPES,
    PruneSettings,
    RecoverConfig,
    RecoverSettings,
    make_config,
    make_recover_config,
)
from ..errors import SecateurError
from ..evaluation import Perplexity
from ..methods import METHODS
from ..models import StreamedModel, load
from ..progress import Progress, Told, note, telling, timed
from ..registry import choose
from .calibration import DEFAULT_CALIBRATION
from .checks import output_folder, path_of
from .held_out import compared, streamed
from .keeping import Stored, keeping
from .minutes import MEASURING, TRAINING, in_minutes
from .passes import hidden_bytes
from .pruning import prune
from .result import Result
from .student import Student, open_student
from .texts import named
from .training import AT_ONCE, Trained, find_state, train
from .training_data import TrainingData, read_data
from .write_recovery import publish_recovery

# Settings that pruning and recovery have in common.
_SHARED = (
    *READING,
    "seed",
    "device",
    "evaluate",
    "evaluate_tokens",
    "prompts",
    "length",
    "hidden_gib",
    "device_gib",
    "resident",
    "field",
    "bos",
    "format",
)


# What a training calls the model in a folder that is gone by the time that its record is read.
_PRUNED = "what run.toml says was pruned"


@dataclass(frozen=True)
class Recovery:
    """What a recovery made: the settings in force, the numbers, and where the folder is."""

    config: RecoverConfig
    numbers: Mapping[str, Any]
    seconds: float
    tokens_per_second: float
    notes: tuple[str, ...]
    out: Path

    def load(self) -> Any:
        """The recovered model, ready for `generate`."""
        return load(self.out)

    def to_json(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return {
            "out": str(self.out),
            "settings": self.config.model_dump(),
            "results": dict(self.numbers),
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "notes": list(self.notes),
        }


@public(
    model=a_folder_or_name,
    out=an_output,
    force=a_flag,
    keep_adapter=a_flag,
    fresh=a_flag,
    progress=a_progress,
)
def recover(
    model: str | Path,
    *,
    out: str | Path,
    force: bool = False,
    keep_adapter: bool = False,
    store: Stored = None,
    fresh: bool = False,
    progress: Progress | None = None,
    **settings: Unpack[RecoverSettings],
) -> Recovery:
    """Train the pruned folder `model` a little and write the better one to the folder `out`.

    `settings` are the fields of `RecoverConfig`: recipe, data, teacher, steps, seed and so on. In
    the place of a name, `data` and `evaluate` may be text, as for `prune`.
    `keep_adapter` writes LoRA's adapter beside `out`'s weights, which have it merged all the same.
    A run that was cut short goes on where it was when the same call is made again. `store` and
    `fresh` are those of `prune`.

    Raises:
        SecateurError: bad input; nothing was written.
    """
    names, texts = named(settings)
    config = make_recover_config(**names, model=str(model))
    out = path_of(out)
    with telling(progress) as told:
        student = open_student(config)
        if keep_adapter and config.trained != "lora":
            raise SecateurError(
                f"--keep-adapter keeps LoRA's, and --recipe {config.recipe} trains"
                f" {config.trained}.\nType: --recipe lora --keep-adapter"
            )
        with output_folder(out, force, *student.read, training=True) as folder:
            assert folder is not None, "there is a path"
            adapter = folder / "adapter" if keep_adapter else None
            with (
                _resumable(state := training_file(folder.parent, real_path(out))),
                keeping(store, folder, out, fresh=fresh) as kept,
            ):
                student = student.keeping(kept)
                return _recovered(student, texts, folder, state, adapter, out, told, anew=force)


@public(
    model=a_folder_or_name,
    out=an_output,
    recipe=a_word,
    force=a_flag,
    fresh=a_flag,
    progress=a_progress,
)
def prune_and_recover(
    model: str | Path,
    *,
    out: str | Path,
    recipe: str,
    force: bool = False,
    minutes: float | None = None,
    store: Stored = None,
    fresh: bool = False,
    progress: Progress | None = None,
    **settings: Unpack[PruneSettings],
) -> tuple[Result, Recovery]:
    """Prune `model` and train what is left on its calibration text: `out` has the outcome.

    `recipe` is one of `RECIPES`, or `own` for the method's; the training takes as many `minutes`,
    or else the recipe's steps. `settings`, `store` and `fresh` are those of `prune`.

    Raises:
        SecateurError: bad input, or a method without a recovery; nothing was written.
    """
    choose("recovery", recipe, {**RECIPES, "own": None})
    names, texts = named(settings)
    for name, text in texts.items():
        if isinstance(text, Iterator):
            raise SecateurError(
                f"The {name} text can be read only once, and pruning and recovery both read it.\n"
                "Give it as a list."
            )
    pruning = make_config(model=str(model), **names)
    if recipe == "own":
        recipe = METHODS[pruning.method].recovery or ""
        if not recipe:
            raise SecateurError(
                f"The method {pruning.method!r} has no recovery of its own.\n"
                f"Type: --recover {' or --recover '.join(RECIPES)}"
            )
    shared = {name: getattr(pruning, name) for name in _SHARED}
    if pruning.dtype != "float16":  # nothing is trained in it
        shared["dtype"] = pruning.dtype
    if RECIPES[recipe].loss == "kl":
        shared["teacher"] = str(model)
    config = make_recover_config(model=str(model), recipe=recipe, minutes=minutes, **shared)
    out = path_of(out)
    # what it lacks shows before the pruning
    given = config.model_copy(update={"data": pruning.calibration})
    if "calibration" in texts:
        texts["data"] = texts["calibration"]
    with telling():  # of the dense model; the run itself tells it again
        first = open_student(given)
        if pruning.calibration not in (None, "self"):
            read_data(first.opened, given.model_copy(update={"samples": 2}), texts=texts)
    with output_folder(out, force, *first.read, training=True) as folder:
        assert folder is not None, "there is a path"
        state = training_file(folder.parent, real_path(out))
        with (
            _resumable(state),
            keeping(store, folder, out, fresh=fresh) as kept,
            _between(folder) as place,
        ):
            # what is trained is read again, whatever the outcome is written as
            own: PruneSettings = {**settings, "format": "safetensors"}
            pruned = prune(model, out=place / "pruned", store=kept, progress=progress, **own)
            update: dict[str, Any] = {
                "model": str(place / "pruned"),
                "data": pruned.config.calibration or DEFAULT_CALIBRATION,
                "bos": pruned.config.bos,
                "merge_adapter": None,
                "dequantise": False,
            }
            with telling(progress) as told:
                student = open_student(config.model_copy(update=update), _PRUNED).keeping(kept)
                done = _recovered(student, texts, folder, state, None, out, told, anew=force)
    return replace(pruned, out=out), done


def _recovered(
    student: Student,
    given: Mapping[str, Any],
    folder: Path,
    state: Path,
    adapter: Path | None,
    out: Path,
    told: Told,
    *,
    anew: bool,
) -> Recovery:
    """The recipe: read, measure, train, measure again, write."""
    minutes = student.config.minutes
    student, data = in_minutes(student, given, state, anew=anew)
    if data.begin.mode != "given":
        student = student.under(bos=data.begin.mode)
    known_by = find_state(student, data, state, anew=anew)
    if data.text is not None and not data.text.lengths:
        what = "too little text" if len(data.text.text.ids) else "instructions alone, and no text"
        note(f"there is {what} to take perplexity on; name one: --evaluate FILE.txt")
    before = _perplexities(student, data, student.source, "before")
    student.source.supply.let_go()  # the whole model takes the room
    with timed(TRAINING):
        trained = train(student, data, state, known_by, anew=anew, adapter=adapter)
    if minutes is not None:
        taken = (told.seconds.get(MEASURING, 0) + told.seconds[TRAINING]) / 60
        note(f"the training took {taken:.2f} minutes of the {minutes:g} that it had")
    small = streamed(
        trained.form, student.opened, student.source, known_by, str(trained.outcome.checks)
    )
    after = _perplexities(student, data, small, "after")
    numbers = _numbers(student, data, trained, compared(before, after))
    if minutes is not None:
        numbers["minutes"] = minutes
    numbers = publish_recovery(folder, student, trained, numbers)
    speed = trained.outcome.tokens / max(trained.outcome.seconds, 1e-9)
    config = student.config.model_copy(update={"model": student.name})
    return Recovery(config, numbers, told.seconds["total"], speed, tuple(told.notes), out)


def _perplexities(
    student: Student, data: TrainingData, model: StreamedModel, when: str
) -> Sequence[Perplexity]:
    """Perplexity on the text of the data, if there is one."""
    text = data.text
    if text is None:
        return ()
    limit = hidden_bytes(student.config.hidden_gib)
    return text.perplexities(model, AT_ONCE, when, limit=limit, store=student.store)


def _numbers(
    student: Student, data: TrainingData, trained: Trained, perplexity: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the record and the caller get."""
    outcome = trained.outcome
    specs = student.opened.weights.specs.values()
    return {
        "trained": student.config.trained,
        "trained_parameters": trained.parameters,
        "parameters": sum(spec.elements for spec in specs),
        "data": {
            "source": data.source,
            "examples": len(data.examples) - data.held,
            "held_out": data.held,
            "tokens": data.trained_tokens,
            "sha256": data.examples.sha256,
        },
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "checks": [
            {key: value for key, value in asdict(check).items() if value is not None}
            for check in outcome.checks
        ],
        "perplexity": perplexity,
        "evaluation": {"text": data.text.name if data.text else "none"},
        "bos": data.begin.to_json(),
    }


@contextmanager
def _between(folder: Path) -> Iterator[Path]:
    """A folder beside that of the result, with a name that the next run there would tidy away."""
    place = folder.with_name(f"{folder.name.rpartition('-')[0]}-{token()}")
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _resumable(state: Path) -> Iterator[None]:
    """An interrupt says where the state is, if there is one."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        if not state.exists():
            raise
        raise KeyboardInterrupt(
            f"the training so far is in {state.name} beside --out: type the same command to go on"
        ) from interruption
