"""How long and how fast a training goes: all of it follows from the steps and the seed."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..data import IGNORED, Examples
from .batch import drawn

CHECKS = 10


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast. `batch` examples make a step, `micro` of them at once.

    With `micro` None as many go at once as have a number of tokens that suits any length.

    `rate` is the learning rate at its highest; with `relative` it is multiplied with what suits
    each tensor (`relative_rate`). A step's loss is taken at `places` of the places of each example
    (`drawn`), a share, others in every step. Training stops after `patience` checks in a row
    without a better held-out loss.
    """

    steps: int
    batch: int
    micro: int | None
    rate: float
    relative: bool
    warmup: int
    seed: int
    patience: int = 4
    places: float = 1.0

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

    def seed_of(self, step: int | None) -> int:
        """The seed of what step `step` (from 0) draws; None: of what every check draws."""
        return self.seed if step is None else self.seed * 1_000_003 + step

    def told(self, some: Examples, step: int | None = None) -> Examples:
        """The examples, with labels where the loss of step `step`, or of a check, is taken."""
        return drawn(some, self.places, self.seed_of(step))

    def told_ever(self, data: Examples, held: int) -> Bool[Tensor, "example token"]:
        """Before which tokens of `data` any step or check takes its loss; the last `held` check."""
        if self.places >= 1:
            return data.labels != IGNORED
        count = len(data) - held
        found = torch.zeros(data.labels.shape, dtype=torch.int32)
        for step in (None, *range(self.steps)):
            rows = torch.arange(count, len(data)) if step is None else self.rows(step, count)
            labels = self.told(data[rows], step).labels
            # where an epoch ends, an example can be in a step twice
            found[:, : labels.shape[1]].index_add_(0, rows, (labels != IGNORED).int())
        return found > 0


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
