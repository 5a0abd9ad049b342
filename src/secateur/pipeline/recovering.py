"""Recovery, from top to bottom: a pruned folder is trained, alone or right after the cut."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import torch

from ..arguments import (
    a_flag,
    a_folder_or_name,
    a_progress,
    a_word,
    an_output,
    optional,
    public,
)
from ..checkpoint import real_path, training_file
from ..config import (
    RecoverConfig,
    RecoverSettings,
    make_recover_config,
)
from ..errors import SecateurError
from ..evaluation import Perplexity
from ..models import StreamedModel, dtype_name, load
from ..progress import Progress, Told, note, telling, timed
from ..ranks import ALONE, joined_as, this
from .checks import output_folder, path_of
from .held_out import compared, streamed
from .keeping import Stored, keeping
from .minutes import MEASURING, TRAINING, in_minutes
from .passes import hidden_bytes
from .pushing import pushing
from .room import check_room_of_training
from .student import Student, open_student
from .texts import named
from .tracking import Track, curves, logs_beside, track_of
from .training import AT_ONCE, Trained, find_state, train
from .training_data import TrainingData
from .write_recovery import publish_recovery


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
    push_to_hub=optional(a_word),
    private=a_flag,
    track=optional(a_word),
    keep_adapter=a_flag,
    fresh=a_flag,
    progress=a_progress,
)
def recover(
    model: str | Path,
    *,
    out: str | Path,
    force: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    track: str | None = None,
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
    A run that was cut short goes on where it was when the same call is made again. `store`,
    `fresh`, `push_to_hub` and `private` are those of `prune`. `track` draws losses and rates with
    "tensorboard", "mlflow" or "wandb", whose logs are in the folder OUT-logs.

    Raises:
        SecateurError: bad input; nothing was written.
    """
    names, texts = named(settings)
    config = make_recover_config(**names, model=str(model))
    out = path_of(out)
    drawn = track_of(track, logs_beside(out))
    with telling(progress) as told, pushing(push_to_hub, out, private=private):
        student = open_student(config)
        if keep_adapter and config.trained != "lora":
            raise SecateurError(
                f"--keep-adapter keeps LoRA's, and --recipe {config.recipe} trains"
                f" {config.trained}.\nType: --recipe lora --keep-adapter"
            )
        with output_folder(out, force, *student.read, training=True) as folder:
            adapter = folder / "adapter" if folder is not None and keep_adapter else None
            state = None if folder is None else training_file(folder.parent, real_path(out))
            with (
                resumable(state),
                keeping(store, folder, out, fresh=fresh) as kept,
            ):
                check_room_of_training(folder, student)
                student = student.keeping(kept)
                return recovered(
                    student, texts, folder, state, adapter, out, told, anew=force, track=drawn
                )


def recovered(
    student: Student,
    given: Mapping[str, Any],
    folder: Path | None,
    state: Path | None,
    adapter: Path | None,
    out: Path,
    told: Told,
    *,
    anew: bool,
    track: Track | None = None,
    earlier: Sequence[Mapping[str, Any]] = (),
) -> Recovery:
    """The recipe: read, measure, train, measure again, write.

    Of several ranks the first has a `folder`, a `state` and what else is written.

    `track` is where steps are drawn, `earlier` are the trainings that the student has behind it,
    for the record.
    """
    minutes = student.config.minutes
    student, data = in_minutes(student, given, state, anew=anew)
    if data.begin.mode != "given":
        student = student.under(bos=data.begin.mode)
    known_by = find_state(student, data, state, anew=anew)
    if data.text is not None and not data.text.lengths:
        what = "too little text" if len(data.text.text.ids) else "instructions alone, and no text"
        note(f"there is {what} to take perplexity on; name one: --evaluate FILE.txt")
    run = f"{student.config.recipe}-{known_by[:8]}"  # one that goes on has the same name
    with curves(track if this().first else None, run, student.config.model_dump()):
        before = _perplexities(student, data, student.source, "before")
        student.source.supply.let_go()  # the whole model takes the room
        with timed(TRAINING), this().linked():
            trained = train(student, data, state, known_by, anew=anew, adapter=adapter)
    if minutes is not None:
        taken = (told.seconds.get(MEASURING, 0) + told.seconds[TRAINING]) / 60
        note(f"the training took {taken:.2f} minutes of the {minutes:g} that it had")
    small = streamed(
        trained.form, student.opened, student.source, known_by, str(trained.outcome.checks)
    )
    after = _after(student, data, small)
    numbers = _numbers(student, data, trained, compared(before, after))
    if minutes is not None:
        numbers["minutes"] = minutes
    if earlier:
        numbers["earlier"] = list(earlier)
    numbers = this().told(
        "the result", lambda: publish_recovery(folder, student, trained, small, numbers)
    )
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


def _after(student: Student, data: TrainingData, small: StreamedModel) -> Sequence[Perplexity]:
    """Perplexity after the training; of a model that is divided the first rank has all of it."""
    if not student.divided:
        return _perplexities(student, data, small, "after")

    @joined_as(ALONE)
    def alone() -> list[dict[str, Any]]:
        return [asdict(one) for one in _perplexities(student, data, small, "after")]

    return [Perplexity(**one) for one in this().told("perplexity after", alone)]


def _numbers(
    student: Student, data: TrainingData, trained: Trained, perplexity: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the record and the caller get."""
    outcome = trained.outcome
    specs = student.opened.weights.specs.values()
    return {
        "trained": student.config.trained,
        "trained_parameters": trained.parameters,
        "dtype": dtype_name(student.autocast or torch.float32),
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
        "evaluation": data.text.to_json() if data.text else {"text": "none"},
        "bos": data.begin.to_json(),
    }


@contextmanager
def resumable(*states: Path | None) -> Iterator[None]:
    """An interrupt says where the state of the latest training is, if there is one."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        there = [state.name for state in states if state is not None and state.exists()]
        if not there:
            raise
        raise KeyboardInterrupt(
            f"the training so far is in {there[-1]} beside --out: type the same command to go on"
        ) from interruption
