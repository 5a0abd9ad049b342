"""The loss of a batch, and its gradient, without the logits of all places at once.

The last hidden states are cut into pieces. Of each piece the loss and its gradient are taken while
its logits are there; what comes together is the gradient of the hidden states, and with that the
way back through the layers begins. Nothing is computed twice.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .batch import Batch
from .halves import Halves
from .objectives import Objective

# Bytes of fp32 logits that are there at once: about what a CPU keeps in its caches; a GPU needs
# more rows to be busy. Fewer rows than these wait for the weights of the head to be read.
_PIECE, _PIECE_GPU, _ROWS = 2**25, 2**29, 128


def pieces(halves: Halves, told: Float[Tensor, "place hidden"]) -> list[slice]:
    """Which of some places go through the head together."""
    count, width = told.shape
    room = _PIECE if told.device.type == "cpu" else _PIECE_GPU
    rows = max(_ROWS, room // (4 * halves.vocabulary))
    if halves.head_trains:  # else what adds up its gradient moves more bytes than the logits do
        rows = max(rows, width)
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def loss_of(halves: Halves, objective: Objective, batch: Batch) -> list[Tensor]:
    """The loss of each piece of a batch, if it counts."""
    piece_loss = objective(batch)
    with torch.no_grad():
        told = halves.hidden(batch.ids).flatten(0, 1)[batch.places]
        if not batch.counts:
            return []
        return [piece_loss(halves.logits(told[piece]), piece) for piece in pieces(halves, told)]


def backward(halves: Halves, objective: Objective, batch: Batch, share: float) -> list[Tensor]:
    """The loss of each piece of a batch; `share` times its gradient is added to the parameters'.

    One that does not count adds nothing, and goes all the way back for the ranks that wait there.
    """
    piece_loss = objective(batch)
    told = halves.hidden(batch.ids).flatten(0, 1)[batch.places]
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    share = share if batch.counts else 0.0
    for piece in pieces(halves, told):
        leaf = told.detach()[piece].requires_grad_()
        loss = piece_loss(halves.logits(leaf), piece)
        (loss * share).backward()
        losses.append(loss.detach())
        gradients.append(leaf.new_zeros(leaf.shape) if leaf.grad is None else leaf.grad)
    if told.requires_grad:
        told.backward(torch.cat(gradients) if gradients else told.detach())
    return losses if batch.counts else []
