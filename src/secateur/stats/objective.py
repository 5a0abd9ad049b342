"""What goes back through the layers: the gradient, by the logits, of one of three sums over tokens.

    OBSERVED    -log p(y_t)               y_t the text's own next token
    DRAWN       -log p(y_t)               y_t drawn from the model's prediction p
    ENTROPY     -sum_v p_v log p_v        gradient -p_v (log p_v + entropy)

Squared gradients of the second, not of the first, are the Fisher information: the mean of its
gradient is zero, and the mean of the square is the curvature of KL(model || changed model).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..device_memory import sent
from .blocks import in_cache
from .loss import loss_and_gradient

OBSERVED, DRAWN, ENTROPY = "observed", "drawn", "entropy"

# Which rows, and their logits [row, vocabulary], to the sum and its gradient by the logits.
Objective = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
# Some windows to the objective of theirs.
Start = Callable[[slice], Objective]


def objective(name: str, tokens: Int64[Tensor, "window token"], seed: int) -> Start:
    """The objective of some windows, whose predictions come row by row, the last one left out."""
    count, length = tokens.shape
    if name == ENTROPY:
        return lambda windows: lambda rows, logits: entropy_and_gradient(logits)
    if name == OBSERVED:
        return lambda windows: of_labels(tokens[windows][:, 1:].flatten())
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(count, length - 1, generator=generator, dtype=torch.float64)
    return lambda windows: _of_draws(places[windows].flatten())


def of_labels(labels: Int64[Tensor, " row"]) -> Objective:
    """The loss on these labels."""
    return lambda rows, logits: loss_and_gradient(logits, sent(labels[rows], logits.device))


def _of_draws(places: Float[Tensor, " row"]) -> Objective:
    def loss(rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        return loss_and_gradient(logits, drawn(logits, sent(places[rows], logits.device)))

    return loss


def drawn(
    logits: Float[Tensor, "row vocabulary"], places: Float[Tensor, " row"]
) -> Int64[Tensor, " row"]:
    """A label a row: the first up to which the probabilities come to more than its place in [0, 1).

    Of places drawn evenly, labels have the model's own probabilities.
    """
    found, start = [], 0
    for own in in_cache(logits):
        reached = torch.softmax(own.float(), dim=-1).cumsum(dim=-1, dtype=torch.float64)
        wanted = places[start : start + len(own), None] * reached[:, -1:]
        label = torch.searchsorted(reached, wanted, right=True)[:, 0]
        found.append(label.clamp(max=own.shape[1] - 1))
        start += len(own)
    return torch.cat(found)


def entropy_and_gradient(
    logits: Float[Tensor, "row vocabulary"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "row vocabulary"]]:
    """The summed entropy of the predictions, and its gradient by the logits in their dtype."""
    gradient, total = torch.empty_like(logits), torch.zeros((), device=logits.device)
    for own, into in zip(in_cache(logits), in_cache(gradient), strict=True):
        logs = torch.log_softmax(own.float(), dim=-1)
        shares = logs.exp()
        # of a probability of zero the product is zero, whatever the logarithm
        entropy = -torch.where(shares > 0, shares * logs, 0).sum(dim=-1, keepdim=True)
        total += entropy.sum()
        into.copy_(torch.where(shares > 0, -shares * (logs + entropy), 0))
    return total, gradient
