"""The stage that trains: on from where a kill left it, to the tensors of a better model."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import OnDemand, Packed
from ..config import READING
from ..data import IGNORED, Examples
from ..device_memory import free_bytes
from ..export import Form, pruned_form, with_around
from ..memory import give_back
from ..models import OpenModel, computing_dtype
from ..progress import note
from ..ranks import this
from ..recovery import (
    STATE_FORMAT,
    CachedDistillation,
    Copies,
    FullDistillation,
    Groupwise,
    Halves,
    Lora,
    Objective,
    Outcome,
    Trainer,
    fits,
    forget_other,
    narrowed,
    next_token,
    read_state,
    recomputed,
)
from ..stats import Walk
from ..structure import Plan
from ..surgery import pruned_view
from .checks import vocabulary
from .passes import hidden_bytes
from .student import Student
from .trainable import Trained as AnyTrained
from .trainable import make_trained, trained_tensors
from .training_data import FEW_TOKENS, TrainingData, most_examples

# Settings that do not decide what the trained weights are, once data and models are known.
_NOT_IN_WEIGHTS = (
    "data",
    "device",
    "evaluate",
    "evaluate_tokens",
    "prompts",
    "format",
    "hidden_gib",
    "device_gib",
    "resident",
    "shard",
    "model",
    "recompute",
    "teacher",
    *READING,
)
# How often an example may come before its second time teaches more of itself than of the model.
_ROUNDS = 1.5
AT_ONCE = 8  # windows in a pass of the teacher or of an evaluation


@dataclass(frozen=True)
class Trained:
    """The trained model as it will be written: `packed` linears in few bits, if there are any.

    `parameters` counts those that were trained.
    """

    form: Form
    packed: Mapping[str, Packed] | None
    outcome: Outcome
    parameters: int


def find_state(student: Student, data: TrainingData, state: Path | None, *, anew: bool) -> str:
    """What a training is known by, in the file `state` too; `anew` forgets another one's there.

    Of several ranks the first has the file.

    Raises:
        SecateurError: the state there is another training's: it is told before the long work.
    """
    known_by = fingerprint(student, data)

    def find() -> None:
        if state is not None and anew:
            forget_other(state, known_by)
        if state is not None:
            read_state(state, known_by)

    this().told(f"the state of {known_by}", find)
    return known_by


def train(
    student: Student,
    data: TrainingData,
    state: Path | None,
    known_by: str,
    *,
    anew: bool,
    adapter: Path | None,
) -> Trained:
    """Train, keeping the state in a file; LoRA's adapter goes to the folder `adapter`, if asked.

    Of several ranks the first has both.

    Raises:
        SecateurError: the loss is not finite from the first step.
    """
    if data.trained_tokens < FEW_TOKENS:
        short = len(data.examples) < most_examples(student.config)
        more = "" if short else "; more --samples, or a longer training, read more of the data"
        note(
            f"{data.trained_tokens:,} tokens to train on are few (under {FEW_TOKENS:,}): what is"
            f" gained may not hold on other text{more}"
        )
    _tell_rounds(student, data)
    objective = make_objective(student, data.examples)
    trained, trainer = make_trainer(student, data, objective, state, known_by, anew=anew)
    outcome = trainer.run()
    _explain(outcome, trainer.steps)
    packed = trained.packed() if isinstance(trained, Groupwise) else None
    # of a model that is divided the first rank has what was trained
    whole = this().first or not student.divided
    tensors = trained_tensors(trained, student.opened) if whole else {}
    form = _form(student, tensors, own=packed is not None)
    if adapter is not None and isinstance(trained, Lora):
        trained.save(adapter)
    return Trained(form, packed, outcome, trainer.elements)


def _tell_rounds(student: Student, data: TrainingData) -> None:
    """Say how often each example comes, where they are few for the steps that are asked for."""
    count = len(data.examples) - data.held
    schedule = student.config.schedule(count)
    rounds = schedule.batch * schedule.steps / count
    if student.config.own_steps is not None and rounds > _ROUNDS:
        note(f"each of {count:,} examples comes {rounds:.1f} times: more text would serve better")


def make_trainer(
    student: Student,
    data: TrainingData,
    objective: Objective,
    state: Path | None = None,
    known_by: str = "",
    *,
    anew: bool = False,
) -> tuple[AnyTrained, Trainer]:
    """What is trained, and the loop that trains it."""
    # what is divided goes to the device layer by layer
    model = _whole(student).to("cpu" if student.divided else student.device)
    trained = make_trained(model, student.opened, student.config, student.linears)
    if student.autocast is not None:
        narrowed(model, student.autocast)
    together = _divided(student, model, trained) if student.divided else Copies(trained.parameters)
    trainer = Trainer(
        model,
        together,
        data.examples,
        data.held,
        objective,
        student.config.schedule(len(data.examples) - data.held),
        device=student.device,
        autocast=student.autocast,
        store=state,
        fingerprint=known_by,
        anew=anew,
    )
    if _recomputes(student, trainer):
        recomputed(model.get_submodule(student.opened.family.layers))
    return trained, trainer


def _divided(student: Student, model: Any, trained: AnyTrained) -> Copies:
    """The model divided over the ranks, and what is trained as this rank has it."""
    from ..recovery.sharding import Shards

    assert not isinstance(trained, Groupwise), "the settings refuse it"
    layers = model.get_submodule(student.opened.family.layers)
    together = Shards(model, layers, trained.parameters, this(), student.device)
    trained.parameters = together.parameters
    give_back()
    return together


def _recomputes(student: Student, trainer: Trainer) -> bool:
    """Whether the layers keep nothing for the way back: as the settings say, or if it won't fit."""
    asked, device = student.config.recompute, student.device
    if asked != "auto" or device.type != "cuda":
        return asked == "always"
    if student.divided:  # ranks that find out by trying would wait for each other
        return True
    own = fits(trainer.kept_bytes(), trainer.parameters, free_bytes(device))
    if all(this().each("whether it fits", own)):
        return False
    note("layers run again on the way back: what they keep does not fit (--recompute)")
    return True


def fingerprint(student: Student, data: TrainingData) -> str:
    """Of everything that decides the trained weights."""
    settings = student.config.model_dump()
    for name in _NOT_IN_WEIGHTS:
        settings.pop(name)
    parts = [
        STATE_FORMAT,
        json.dumps(settings, sort_keys=True),
        str(student.autocast),
        data.examples.sha256,
        student.opened.structure.architecture,
        student.opened.content,
        *([] if student.teacher is None else _of_teacher(student, student.teacher)),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _of_teacher(student: Student, teacher: OpenModel) -> list[str]:
    """Its weights, and the dtype that it computes in."""
    dtype = computing_dtype(student.config.dtype, teacher.dtype, student.device)
    return [teacher.content, str(dtype)]


def make_objective(student: Student, examples: Examples) -> Objective:
    """What the training takes a loss of; a teacher whose predictions are kept has run by then."""
    config, teacher = student.config, student.teacher
    if not config.distils:
        return next_token
    assert teacher is not None, "a distillation has one"
    if config.top_k == 0:
        return FullDistillation(_whole_teacher(student, teacher, examples))
    limit = hidden_bytes(config.hidden_gib) // 2  # the states and the cache share it
    source = teacher.streamed(**config.machine)
    walk = Walk(source, examples.ids, batch=AT_ONCE, limit=limit, store=student.store)
    told = examples.labels != IGNORED
    return CachedDistillation(walk, min(config.top_k, vocabulary(teacher) - 1), told)


def _whole_teacher(student: Student, teacher: OpenModel, examples: Examples) -> Halves:
    """The dense model in memory; divided over the ranks as the student is."""
    dense, begin = teacher.whole(student.autocast or torch.float32).eval(), None
    if student.divided:
        from ..recovery.sharding import base_of, divide

        dense.requires_grad_(False)
        divide(dense, dense.get_submodule(teacher.family.layers), this(), student.device)
        begin = base_of
    else:
        dense = dense.to(student.device)
    return Halves(dense, examples.ids[:2, :3].to(student.device), nullcontext, begin)


def _whole(student: Student) -> Any:
    """The model in the host's memory, whole: fp32 for a CPU, else bf16 where the passes are."""
    half = student.autocast is not None and student.device.type != "cpu"
    return student.opened.whole(torch.bfloat16 if half else torch.float32)


def _form(student: Student, tensors: Mapping[str, Tensor], *, own: bool) -> Form:
    """The folder's form with the trained tensors in place."""
    opened = student.opened
    structure = opened.structures
    plan = Plan({}, structure.architecture, structure.weights)
    known = OnDemand((n for n in tensors if n in opened.weights.specs), tensors.__getitem__)
    weights = pruned_view(opened.weights, structure, plan, replaced=known)
    form = pruned_form(
        opened.family, opened.raw_config, opened.config, structure, plan, weights, own=own
    )
    return with_around(form, opened)


def _explain(outcome: Outcome, steps: int) -> None:
    if outcome.stopped is not None:
        note(
            f"training stopped after step {outcome.steps} of {steps}: {outcome.stopped}; the state"
            f" after step {outcome.best_step} is kept"
        )
    elif outcome.best_step == 0:
        note("nothing was gained on held-out examples: the weights are as they were")
    if outcome.overfits:
        note(
            "the loss fell on the training data and rose on held-out examples: more data, or fewer"
            " steps, would serve better"
        )
