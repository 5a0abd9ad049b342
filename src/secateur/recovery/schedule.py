"""How long and how fast a training goes: all of it follows from the steps and the seed."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

CHECKS = 10


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast. `batch` examples make a step, `micro` of them at once.

    With `micro` None as many go at once as have a number of tokens that suits any length.

    `rate` is the learning rate at its highest; with `relative` it is multiplied with what suits
    each tensor (`relative_rate`). Training stops after `patience` checks in a row without a better
    held-out loss.
    """

    steps: int
    batch: int
    micro: int | None
    rate: float
    relative: bool
    warmup: int
    seed: int
    patience: int = 4

    @property
    def check_every(self) -> int:
        """Steps between two looks at the held-out loss."""
        return max(1, self.steps // CHECKS)

    def checks_after(self, done: int) -> bool:
        """Whether there is such a look after `done` steps."""
        return done % self.check_every == 0 or done == self.steps

    @property
    def checks(self) -> int:
        """How many there are, the one before the first step among them."""
        return 1 + math.ceil(self.steps / self.check_every)

    def factor(self, step: int) -> float:
        """What the rate is multiplied with in step `step` (from 0)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return max(0.0, (self.steps - step) / max(self.steps - self.warmup, 1))

    def rows(self, step: int, count: int) -> Int64[Tensor, " example"]:
        """Which of `count` examples step `step` sees: each once before any comes again."""
        batch = min(self.batch, count)
        places = range(step * batch, (step + 1) * batch)
        orders = {
            epoch: torch.randperm(count, generator=_generator(self.seed, epoch))
            for epoch in {place // count for place in places}
        }
        return torch.stack([orders[place // count][place % count] for place in places])


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
