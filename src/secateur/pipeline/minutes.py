"""A training of so many minutes: how many steps those are, settled once.

A few steps and the teacher's pass over some examples are timed, on a model that is then let go.
From there on the training is one of so many steps, to the byte; a run that was cut short goes on
with the number in the file beside its state.
"""

import math
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import SecateurError
from ..progress import note, telling, timed, track
from ..ranks import this
from ..recovery import (
    Clock,
    Pace,
    State,
    damaged,
    forget_other,
    most_steps,
    read_state,
    steps_file,
    timed_check,
    timed_pass,
    timed_steps,
    write_state,
)
from .student import Student
from .training import AT_ONCE, fingerprint, make_objective, make_trainer
from .training_data import TrainingData, held_out, most_examples, read_data

# What is timed: steps for this share of the time, a pass of the teacher over so many examples.
_SHARE, _EXAMPLES = 0.04, 3 * AT_ONCE
# Of the time, what is planned for: a machine is never quite steady.
_PLANNED = 0.97
# Fewer steps than these are not trained; fewer than those are, and it is said that they are few.
_FEWEST, FEW_STEPS = 10, 50
# Where the stages of a run count their seconds.
MEASURING, TRAINING = "measuring", "training"


def in_minutes(
    student: Student,
    given: Mapping[str, Any],
    state: Path | None,
    *,
    anew: bool,
    clock: Clock = time.monotonic,
) -> tuple[Student, TrainingData]:
    """`student` with the number of steps that fit in its minutes, if it has any; and its data.

    `state` is the file of the training's state, `anew` forgets a damaged one; `given` are texts in
    the place of those that the settings name. Of several ranks the first has file and clock.

    Raises:
        SecateurError: as `read_data`, or there is time for too few steps.
    """
    config = student.config
    if config.minutes is None:
        return student, read_data(student.opened, config, texts=given)
    if isinstance(given.get("data"), Iterator):
        raise SecateurError(
            "The data can be read only once, and a training of some minutes reads the first of it"
            " before.\nGive it as a list, or --steps in place of --minutes."
        )
    of_first = partial(this().told, "the clock", clock)
    began = of_first()
    trial = trial_of(student)
    with telling():  # the run itself tells it again
        data = read_data(trial.opened, trial.config, texts=given)
    known_by = fingerprint(student, data)
    steps = _settled(state, known_by, anew=anew)
    if steps is None:
        with timed(MEASURING), this().linked():
            pace = measured(trial, data, of_first, _SHARE * 60 * config.minutes)
        return _planned(student, given, pace, of_first() - began, state, known_by)
    note(f"{config.minutes:g} minutes are {steps:,} steps, as was settled before")
    student = student.under(steps=steps, minutes=None)
    return student, read_data(student.opened, student.config, texts=given)


def trial_of(student: Student) -> Student:
    """The same training on its first examples, to be timed; nothing of it is kept."""
    one = student.config.model_copy(update={"minutes": None, "steps": 1})
    # a tenth is held out
    samples = min(one.samples, math.ceil(1.25 * max(one.most_examples, _EXAMPLES)))
    few = {"minutes": None, "steps": FEW_STEPS, "samples": samples, "evaluate": "none"}
    return student.under(**few).keeping(None)


def measured(trial: Student, data: TrainingData, clock: Clock, seconds: float) -> Pace:
    """The pace of a training, from about so many `seconds` of its steps."""

    def now() -> float:
        if trial.device.type == "cuda":
            torch.cuda.synchronize(trial.device)
        return clock()

    def objective(count: int) -> Any:
        return make_objective(trial, data.examples[torch.arange(count)])

    count = len(data.examples)
    for _ in track((None,), MEASURING, 1, "part"):
        with telling():
            began = now()
            once = each = 0.0
            if trial.config.distils and trial.config.top_k:
                few = min(AT_ONCE, count // 2)
                loss, once, each = timed_pass(objective, few, count, now)
                began = now()
            else:
                loss = objective(count)
            _, trainer = make_trainer(trial, data, loss)
            once += now() - began
            step = timed_steps(trainer, seconds, now)
            check = timed_check(trainer, count, now)
    return Pace(once, each, step, check)


def _planned(
    student: Student,
    given: Mapping[str, Any],
    pace: Pace,
    spent: float,
    state: Path | None,
    known_by: str,
) -> tuple[Student, TrainingData]:
    """As many steps as fit after the seconds `spent`, and their data; the number is kept."""
    steps = steps_within(student, pace, spent)
    longer = student.under(steps=steps, minutes=None)
    data = read_data(longer.opened, longer.config, texts=given)
    if len(data.examples) < most_examples(longer.config):  # all there are: they come again
        steps = max(steps, steps_within(student, pace, spent, len(data.examples)))
        longer = longer.under(steps=steps)
    note(
        f"{student.config.minutes:g} minutes are {steps:,} steps: {pace.step:.2g} s each, and"
        f" {pace.teacher * len(data.examples) + pace.once:.2g} s before them"
    )
    try:
        if state is not None:
            values = {"steps": steps}
            write_state(state, State({}, values), known_by, steps_file(state, known_by))
    except SecateurError as error:  # a full disk, say
        note(f"{error} Training goes on; cut short, it begins anew.")
    return longer, data


def steps_within(student: Student, pace: Pace, spent: float, examples: int | None = None) -> int:
    """How many steps fit in the minutes of `student`, of which seconds are `spent`.

    `examples`: so many are all there are.

    Raises:
        SecateurError: too few to gain anything.
    """
    config = student.config
    assert config.minutes is not None, "steps are settled otherwise"

    def seconds(steps: int) -> float:
        own = config.model_copy(update={"steps": steps, "minutes": None})
        count = most_examples(own)
        count = count if examples is None else min(count, examples)
        held = held_out(count)
        return spent + pace.seconds(own.schedule(count - held), count, held)

    steps = most_steps(seconds, _PLANNED * 60 * config.minutes)
    if steps >= FEW_STEPS:
        return steps
    said = (
        f"{config.minutes:g} minutes are time for {steps} steps here; {FEW_STEPS} take about"
        f" {math.ceil(seconds(FEW_STEPS) / _PLANNED / 6) / 10:g} minutes"
    )
    if steps < _FEWEST:
        raise SecateurError(f"{said}.\nGive more --minutes, or a smaller --batch or --length.")
    note(f"{said}: what so few steps gain is little")
    return steps


def _settled(state: Path | None, known_by: str, *, anew: bool) -> int | None:
    """How many steps a run that was cut short has settled on, if there is one."""
    return this().told("steps", lambda: _read_steps(state, known_by, anew=anew))


def _read_steps(state: Path | None, known_by: str, *, anew: bool) -> int | None:
    if state is None:
        return None
    file = steps_file(state, known_by)
    if anew:
        forget_other(file, known_by)
    found = read_state(file, known_by)
    if found is None:
        return None
    steps = found.values.get("steps")
    if type(steps) is not int or steps < 1:
        raise damaged(file)
    return steps
