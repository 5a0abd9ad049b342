"""How ranks train one model together: each has all of it, and takes its part of every step.

    gradient of a step = sum over ranks of the gradient of their losses / tokens of the whole step

The losses of a step are divided by its tokens, whoever has them, so that a sum is exact. It is made
once a step, of all gradients and the loss together. A rank alone does what it does without this.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..data import Examples
from ..ranks import Ranks, this
from .batch import micro_batches
from .halves import BeginBase
from .plain_weights import relative_rate


class Copies:
    """Every rank has a copy of the model and of `parameters`, which are trained."""

    begin: BeginBase | None = None

    def __init__(self, parameters: Mapping[str, nn.Parameter], ranks: Ranks | None = None) -> None:
        self.ranks = this() if ranks is None else ranks
        self.parameters = dict(parameters)
        self.shapes = {name: own.shape for name, own in self.parameters.items()}

    def rate(self, name: str) -> float:
        """What a learning rate is multiplied with, to suit a tensor: see `relative_rate`."""
        return relative_rate(self.parameters[name])

    def parts(
        self, data: Examples, rows: Int64[Tensor, " example"], micro: int | None
    ) -> Iterator[tuple[Tensor, bool]]:
        """What goes through the model at once on this rank, and whether it counts.

        It is of the examples `rows`, which are the same on every rank.
        """
        for part in cut(data, rows[self.ranks.share(len(rows))], micro):
            yield part, True

    def step_sums(self, losses: Sequence[Tensor]) -> tuple[float, float]:
        """The loss of a step, and the norm of its gradient, which is that of all ranks from now on.

        `losses` are those of this rank's pieces; both are read from the device at once.
        """
        if not self.ranks.several:
            total, norm = added(losses, self._norm())
            return total, norm
        (own,) = added(losses)
        of_all = torch.tensor([own], dtype=torch.float64)
        for parameter in self.parameters.values():
            if parameter.grad is None:  # of no example of this rank
                parameter.grad = torch.zeros_like(parameter)
        self.ranks.add_up("a step", [of_all, *self._gradients()])
        return of_all.item(), self._norm().item()

    def loss_sum(self, losses: Sequence[Tensor]) -> float:
        """The loss of examples that were gone through without a gradient, of all ranks."""
        (own,) = added(losses)
        if not self.ranks.several:
            return own
        return self.ranks.summed("losses", [torch.tensor(own, dtype=torch.float64)])[0].item()

    def rest(self) -> None:
        """Between passes: what was made for one that had no way back may be of no use now."""

    def gather(self) -> None:
        """Have all of what was trained in `parameters`, on the first rank at least."""

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors as they are written, of those that this rank has."""
        return tensors

    def part(self, tensor: Tensor) -> Tensor:
        """What this rank has of a tensor that was read."""
        return tensor

    def _gradients(self) -> list[Tensor]:
        return [one.grad for one in self.parameters.values() if one.grad is not None]

    def _norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm(self._gradients())


def cut(data: Examples, rows: Int64[Tensor, " example"], micro: int | None) -> list[Tensor]:
    """The same as `micro_batches`; of no examples, nothing."""
    return list(micro_batches(data, rows, micro)) if len(rows) else []


def added(losses: Sequence[Tensor], *others: Tensor) -> tuple[float, ...]:
    """The sum of losses, and other numbers as they are: read from the device at once."""
    values = torch.stack([*losses, *others]).tolist() if losses or others else []
    return float(sum(values[: len(losses)])), *values[len(losses) :]
