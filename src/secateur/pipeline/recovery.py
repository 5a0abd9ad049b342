"""Recovery of a pruned folder, alone or right after the cut."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from ..arguments import a_flag, a_folder_or_name, a_progress, a_target, a_word, public
from ..checkpoint import real_path, training_file
from ..config import (
    READING,
    RECIPES,
    PruneSettings,
    RecoverSettings,
    make_config,
    make_recover_config,
)
from ..errors import SecateurError
from ..methods import METHODS
from ..models.inputs import check_folder
from ..progress import Progress, Quiet
from ..registry import choose
from . import stages
from .checks import target
from .recovery_run import Recovery, RecoveryRun
from .result import Result
from .run import prune
from .session import path_of
from .texts import named
from .training_data import read_data

# Settings that pruning and recovery have in common.
_SHARED = (
    *READING,
    "seed",
    "device",
    "evaluate",
    "evaluate_tokens",
    "length",
    "hidden_gib",
    "field",
    "bos",
)


@public(
    model=a_folder_or_name, out=a_target, force=a_flag, keep_adapter=a_flag, progress=a_progress
)
def recover(
    model: str | Path,
    *,
    out: str | Path,
    force: bool = False,
    keep_adapter: bool = False,
    progress: Progress | None = None,
    **settings: Unpack[RecoverSettings],
) -> Recovery:
    """Train the pruned folder `model` a little and write the better one to the folder `out`.

    `settings` are the fields of `RecoverConfig`: recipe, data, teacher, steps, seed and so on. In
    the place of a name, `data` and `evaluate` may be text, as for `prune`.
    `keep_adapter` writes LoRA's adapter beside `out`'s weights, which have it merged all the same.
    A run that was cut short goes on where it was when the same call is made again.

    Raises:
        SecateurError: bad input; nothing was written.
    """
    check_folder(model)
    names, texts = named(settings)
    config = make_recover_config(**names, model=str(model))
    out = path_of(out)
    run = RecoveryRun(config, out, progress or Quiet(), texts)
    if keep_adapter and config.trained != "lora":
        raise SecateurError(
            f"--keep-adapter keeps LoRA's, and --with {config.recipe} trains {config.trained}.\n"
            "Type: --with lora --keep-adapter"
        )
    with target(out, force, *run.read, training=True) as folder:
        assert folder is not None  # there is a path
        with _resumable(state := training_file(folder.parent, real_path(out))):
            done = run.carry_out(folder, state, force, keep_adapter)
    return done


@public(model=a_folder_or_name, out=a_target, recipe=a_word, force=a_flag, progress=a_progress)
def prune_and_recover(
    model: str | Path,
    *,
    out: str | Path,
    recipe: str,
    force: bool = False,
    progress: Progress | None = None,
    **settings: Unpack[PruneSettings],
) -> tuple[Result, Recovery]:
    """Prune `model` and train what is left on its calibration text: `out` has the outcome.

    `recipe` is one of `RECIPES`, or `own` for the method's; `settings` are those of `prune`.

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
    config = make_recover_config(model=str(model), recipe=recipe, **shared)
    out = path_of(out)
    # what it lacks shows before the pruning
    given = config.model_copy(update={"data": pruning.calibration})
    if "calibration" in texts:
        texts["data"] = texts["calibration"]
    first = RecoveryRun(given, out, Quiet(), texts)
    if pruning.calibration not in (None, "self"):
        few = given.model_copy(update={"samples": 2})
        read_data(first.opened, few, lambda message: None, texts=texts)
    with target(out, force, *first.read, training=True) as folder:
        assert folder is not None  # there is a path
        state = training_file(folder.parent, real_path(out))
        with _resumable(state), tempfile.TemporaryDirectory(dir=folder) as place:
            pruned = prune(model, out=Path(place) / "pruned", progress=progress, **settings)
            data = pruned.config.calibration or stages.DEFAULT_CALIBRATION
            plain = {"merge_adapter": None, "dequantise": False}
            update = {"model": str(Path(place) / "pruned"), "data": data, **plain}
            update["bos"] = pruned.config.bos
            run = RecoveryRun(config.model_copy(update=update), out, progress or Quiet(), texts)
            run.name = "what run.toml says was pruned"
            done = run.carry_out(folder, state, force, keep_adapter=False)
    return replace(pruned, out=out), done


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
