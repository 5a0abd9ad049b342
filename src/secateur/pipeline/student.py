"""What a recovery is about: the model that is trained, the settings, and who teaches it."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ..checkpoint import Store
from ..config import RecoverConfig
from ..errors import SecateurError
from ..models import OpenModel, StreamedModel, multiplies_bfloat16, open_model, resolve_device
from ..progress import note
from ..ranks import this
from .calibration import window_length
from .checks import reading_notes, vocabulary
from .idle import idle_recovery_settings
from .look import read_plan
from .trainable import adaptable
from .training_data import no_dense_model, teacher_reading, with_target


@dataclass(frozen=True)
class Student:
    """A pruned model that is to be trained; `name` is what records call it.

    `linears` are those that adapters can be put on; `teacher` is the dense model, if there is one.
    What passes find is kept in `store`, if there is one.
    """

    opened: OpenModel
    config: RecoverConfig
    teacher: OpenModel | None
    linears: tuple[str, ...]
    name: str
    store: Store | None = None

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return torch.device(self.config.device)

    @property
    def divided(self) -> bool:
        """Whether each of several ranks has a part of its weights."""
        return self.config.shard and this().several

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of the passes; None for fp32.

        By itself a CPU computes in bf16 if it can and the checkpoint is in half precision: layers
        of small models, which mostly are in fp32, spend more time on casts than they gain.
        """
        if self.config.dtype == "auto":
            half = self.device.type != "cpu" or self.opened.dtype.itemsize < 4
            bf16 = half and multiplies_bfloat16(self.device)
        else:
            bf16 = self.config.dtype == "bfloat16"
        return torch.bfloat16 if bf16 else None

    @cached_property
    def source(self) -> StreamedModel:
        """The model before the training, one layer at a time."""
        return self.opened.streamed(**self.config.machine)

    @property
    def read(self) -> tuple[OpenModel | str | None, ...]:
        """The models and texts that are read."""
        teacher = self.teacher or self.config.teacher  # it may write the text and teach nothing
        return self.opened, teacher, self.config.data, self.config.evaluate

    def keeping(self, store: Store | None) -> "Student":
        """The same model; what passes find is kept."""
        return replace(self, store=store)

    def under(self, **settings: Any) -> "Student":
        """The same model with some settings changed."""
        return replace(self, config=self.config.model_copy(update=settings))


def open_student(config: RecoverConfig, name: str | None = None) -> Student:
    """Open the model to train and its teacher, and tell what there is to know of them.

    Raises:
        SecateurError: as `open_model`, or settings that do not go with the model.
    """
    opened = open_model(config.model, **config.reading)
    for message in reading_notes(opened, config):
        note(message)
    if opened.folder is None:
        raise SecateurError("Recovery reads a folder; write the live model to one first.")
    for message in opened.notes:
        note(message)
    named = config.teacher is not None
    config = with_target(config, opened.folder)
    config = config.model_copy(update={"device": str(resolve_device(config.device))})
    teacher = _opened_teacher(opened, config, named=named)
    linears = adaptable(opened, config)
    for message in idle_recovery_settings(config):
        note(message)
    if config.shard and not this().several:
        note("--shard changes nothing in one process: torchrun --nproc-per-node N starts several")
    if opened.packed and config.trained != "groupwise":
        note(
            "the weights are in few bits, and are written in floating point: only --train"
            " groupwise (or --recipe groupwise) writes few bits"
        )
    return Student(opened, config, teacher, linears, name or config.model)


def _opened_teacher(opened: OpenModel, config: RecoverConfig, *, named: bool) -> OpenModel | None:
    """The dense model, if it is learned from; `named` by the user, or else by run.toml."""
    if config.teacher is None or not config.distils:
        return None
    try:
        teacher = open_model(config.teacher, **teacher_reading(config, opened))
    except SecateurError as error:
        if named:
            raise
        why = f"{config.teacher}, which run.toml names, cannot be opened from here"
        raise no_dense_model(config, why) from error
    for message in teacher.notes:
        note(f"the dense model: {message}")
    if not named and teacher.folder is not None and (teacher.folder / "plan.json").is_file():
        note(
            f"{config.teacher}, which run.toml names and which is learned from, was itself pruned;"
            " to learn from the model before that, type --teacher MODEL"
        )
    plan = opened.folder / "plan.json" if opened.folder else None
    # run.toml has the path as it was typed, and something else may stand there by now
    known = read_plan(plan).weights if not named and plan and plan.is_file() else ""
    if known not in ("", teacher.structure.weights):
        note(
            f"{config.teacher}, which run.toml names, has other weights than the plan was made for;"
            " if it is not the model that was pruned, type --teacher MODEL"
        )
    length = window_length(config.length, opened)
    if teacher.context < length:
        raise SecateurError(
            f"The teacher {config.teacher} reads {teacher.context} tokens at once, and examples"
            f" have {length}.\nType --length {teacher.context} or less."
        )
    theirs, ours = vocabulary(teacher), vocabulary(opened)
    if theirs != ours:
        raise SecateurError(
            f"The teacher {config.teacher} has {theirs:,} tokens, the model {ours:,}: they do not"
            " share a vocabulary.\nName another: --teacher MODEL"
        )
    return teacher
