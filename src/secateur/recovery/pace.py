"""How long a training takes, from a few of its steps; and how many steps fit in a time.

    seconds(n) = once + teacher e(n) + step n + check h(n) c(n)

    e(n), h(n)   examples that n steps need, and those of them that are held out
    c(n)         checks on the way

A number of steps is settled before a training begins: its schedule, its data and so every weight
follow from that number, never from a clock.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from .schedule import Schedule
from .trainer import Trainer

T = TypeVar("T")
Clock = Callable[[], float]

# Steps that are timed, at least and at most, after one that is not: it makes what is made once.
_LEAST, _MOST = 3, 30


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a training: once, an example of the teacher's, a step, an example of a check."""

    once: float
    teacher: float
    step: float
    check: float

    def seconds(self, schedule: Schedule, examples: int, held: int) -> float:
        """Those of a whole training on `examples`, `held` of them held out."""
        checks = self.check * held * schedule.checks
        return self.once + self.teacher * examples + self.step * schedule.steps + checks


def timed_steps(trainer: Trainer, seconds: float, now: Clock) -> float:
    """Seconds of a step: the mean of those that `trainer` takes in about so many `seconds`."""
    trainer.step(0)
    began, done = now(), 0
    spent = 0.0
    while done < _LEAST or (done < _MOST and spent < seconds):
        done += 1
        trainer.step(done)
        spent = now() - began
    return spent / done


def timed_check(trainer: Trainer, examples: int, now: Clock) -> float:
    """Seconds of an example in a check, from one on the first `examples`."""
    began = now()
    trainer.loss(torch.arange(examples))
    return (now() - began) / examples


def timed_pass(run: Callable[[int], T], few: int, many: int, now: Clock) -> tuple[T, float, float]:
    """What `run` makes of the first `many` examples; its seconds once, and for each example.

    A pass over `few` comes before, which makes what is made once, and another one tells the two
    apart.
    """
    run(few)
    times = [now()]
    for count in (few, many):
        made = run(count)
        times.append(now())
    short, long = times[1] - times[0], times[2] - times[1]
    # a pass over more takes longer; where the clock says otherwise, by the long one alone
    each = (long - short) / (many - few) if long > short and many > few else long / many
    return made, max(short - few * each, 0.0), each


def most_steps(seconds_of: Callable[[int], float], seconds: float) -> int:
    """How many steps take no more than `seconds`; 0: not even one does."""
    if seconds_of(1) > seconds:
        return 0
    fit, over = 1, 2
    while seconds_of(over) <= seconds:
        fit, over = over, 2 * over
    while over - fit > 1:
        middle = (fit + over) // 2
        fit, over = (middle, over) if seconds_of(middle) <= seconds else (fit, middle)
    return fit
