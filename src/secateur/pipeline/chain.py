"""A model is pruned and then trained, once or several times, in one go: `out` has the outcome."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from ..arguments import (
    a_flag,
    a_folder_or_name,
    a_progress,
    a_word,
    an_output,
    optional,
    public,
)
from ..checkpoint import real_path, token, training_file
from ..config import (
    OWN,
    READING,
    RECIPES,
    PruneConfig,
    PruneSettings,
    RecoverConfig,
    make_config,
    make_recover_config,
    recipes_of,
)
from ..errors import SecateurError
from ..methods import METHODS
from ..progress import Progress, telling
from .calibration import DEFAULT_CALIBRATION
from .checks import output_folder, path_of
from .keeping import Stored, keeping
from .pruning import prune
from .pushing import pushing
from .recovering import Recovery, recovered, resumable
from .result import Result
from .student import open_student
from .texts import named
from .tracking import logs_beside, track_of
from .training_data import read_data

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


@public(
    model=a_folder_or_name,
    out=an_output,
    recipe=a_word,
    force=a_flag,
    push_to_hub=optional(a_word),
    private=a_flag,
    track=optional(a_word),
    fresh=a_flag,
    progress=a_progress,
)
def prune_and_recover(
    model: str | Path,
    *,
    out: str | Path,
    recipe: str,
    force: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    track: str | None = None,
    minutes: float | None = None,
    store: Stored = None,
    fresh: bool = False,
    progress: Progress | None = None,
    **settings: Unpack[PruneSettings],
) -> tuple[Result, Recovery]:
    """Prune `model` and train what is left on its calibration text: `out` has the outcome.

    `recipe` is one of `RECIPES`, `own` for the method's, or several that train one after the other
    ("distil,groupwise"): the `Recovery` is the last one's, and `numbers["earlier"]` has those
    before. The training takes as many `minutes`, of which each recipe has the same share, or else
    the recipe's steps. `settings`, `store`, `fresh`, `push_to_hub` and `private` are those of
    `prune`, `track` is that of `recover`.

    Raises:
        SecateurError: bad input, or a method without a recovery; nothing was written.
    """
    names, texts = named(settings)
    for name, text in texts.items():
        if isinstance(text, Iterator):
            raise SecateurError(
                f"The {name} text can be read only once, and pruning and recovery both read it.\n"
                "Give it as a list."
            )
    pruning = make_config(model=str(model), **names)
    configs = _configs(str(model), recipe, pruning, minutes)
    out = path_of(out)
    drawn = track_of(track, logs_beside(out))
    # what it lacks shows before the pruning
    given = [one.model_copy(update={"data": pruning.calibration}) for one in configs]
    if "calibration" in texts:
        texts["data"] = texts["calibration"]
    with telling():  # of the dense model; the run itself tells it again
        first, *_ = [open_student(one) for one in given]
        if pruning.calibration not in (None, "self"):
            read_data(first.opened, given[0].model_copy(update={"samples": 2}), texts=texts)
    with (
        telling(progress),
        pushing(push_to_hub, out, private=private),
        output_folder(out, force, *first.read, training=True) as folder,
    ):
        assert folder is not None, "there is a path"
        states = [training_file(folder.parent, real_path(out), i) for i in range(len(configs))]
        with (
            resumable(*states),
            keeping(store, folder, out, fresh=fresh) as kept,
            _between(folder) as place,
        ):
            # what is trained is read again, whatever the outcome is written as
            own: PruneSettings = {**settings, "format": "safetensors", "prompts": 0}
            pruned = prune(model, out=place / "pruned", store=kept, progress=progress, **own)
            update: dict[str, Any] = {
                "data": pruned.config.calibration or DEFAULT_CALIBRATION,
                "bos": pruned.config.bos,
                "merge_adapter": None,
                "dequantise": False,
            }
            trained, done = place / "pruned", list[Recovery]()
            folders = [*(place / one.recipe for one in configs[:-1]), folder]
            for config, state, into in zip(configs, states, folders, strict=True):
                into.mkdir(exist_ok=True)
                with telling(progress) as told:
                    own_config = config.model_copy(update={**update, "model": str(trained)})
                    student = open_student(own_config, _called(done)).keeping(kept)
                    one = recovered(
                        student,
                        texts,
                        into,
                        state,
                        None,
                        out,
                        told,
                        anew=force,
                        track=drawn,
                        earlier=[_summary(earlier) for earlier in done],
                    )
                done.append(one)
                trained = into
    return replace(pruned, out=out), done[-1]


def _configs(
    model: str, recipe: str, pruning: PruneConfig, minutes: float | None
) -> list[RecoverConfig]:
    """The settings of each training; what another one reads is written as safetensors.

    Raises:
        SecateurError: bad settings, or a method without a recovery.
    """
    names = recipes_of(recipe)
    if names == [OWN]:
        own = METHODS[pruning.method].recovery
        if own is None:
            raise SecateurError(
                f"The method {pruning.method!r} has no recovery of its own.\n"
                f"Type: --recover {' or --recover '.join(RECIPES)}"
            )
        names = [own]
    shared = {name: getattr(pruning, name) for name in _SHARED}
    if pruning.dtype != "float16":  # nothing is trained in it
        shared["dtype"] = pruning.dtype
    if minutes is not None:
        minutes /= len(names)
    found = []
    for name in names:
        if RECIPES[name].loss == "kl":
            shared["teacher"] = model
        else:
            shared.pop("teacher", None)
        found.append(make_recover_config(model=model, recipe=name, minutes=minutes, **shared))
    passing = {"format": "safetensors", "prompts": 0}
    between = [one.model_copy(update=passing) for one in found[:-1]]
    return [*between, found[-1]]


def _called(done: Sequence[Recovery]) -> str:
    """What the record calls the model that a training begins with."""
    return ", then ".join([_PRUNED, *(one.config.recipe for one in done)])


def _summary(done: Recovery) -> dict[str, Any]:
    """What the record keeps of a training that another one followed."""
    kept = ("steps", "best_step", "perplexity", "minutes")
    numbers = {name: done.numbers[name] for name in kept if name in done.numbers}
    return {"recipe": done.config.recipe, **numbers}


@contextmanager
def _between(folder: Path) -> Iterator[Path]:
    """A folder beside that of the result, with a name that the next run there would tidy away."""
    place = folder.with_name(f"{folder.name.rpartition('-')[0]}-{token()}")
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
