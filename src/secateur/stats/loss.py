"""The loss on the next token, and its gradient by the logits: logits never exist for all tokens.

    loss_t = -log softmax(z_t)[y_t]        d loss_t / d z_t = softmax(z_t) - onehot(y_t)
    KL_t   = KL(softmax(d_t) || softmax(z_t))    d KL_t / d z_t = softmax(z_t) - softmax(d_t)

Both are taken in fp32 of a few rows at a time, which the processor's cache holds: the logits of a
window are as large as a layer.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..device_memory import free_bytes, sent
from .blocks import in_cache
from .finite import Finite

# Logits are made for so many values at once; on a GPU for 2,000 tokens of 128,000, or as many as
# half of what is free holds with all that is made of them.
_AT_ONCE, _ON_GPU, _BYTES = 2**24, 2**28, 16
# Tokens whose logits are made at once at least; on a CPU fewer wait for a large head to be read.
_LEAST, _LEAST_ON_CPU = 64, 128


def _at_once(device: torch.device) -> int:
    """How many logits may be there at once."""
    if device.type != "cuda":
        return _AT_ONCE
    return min(_ON_GPU, free_bytes(device) // (2 * _BYTES))


def _tokens_at_once(logits: Tensor) -> int:
    """The logits of how many tokens are made at once, if they are like these."""
    least = _LEAST if logits.device.type == "cuda" else _LEAST_ON_CPU
    return max(least, _at_once(logits.device) // logits.shape[-1])


def in_pieces(
    logits_of: Callable[[Tensor], Tensor], hidden: Float[Tensor, "token hidden"]
) -> Iterator[tuple[slice, Tensor, Float[Tensor, "piece vocabulary"]]]:
    """Which tokens, their hidden states [1, piece, hidden] and their logits: a bounded number.

    The head looks at one position at a time, so positions of many windows go in one row.
    """
    start, size = 0, _LEAST
    while start < len(hidden):
        tokens = slice(start, start + size)
        piece = hidden[None, tokens]
        logits = logits_of(piece)[0]
        yield tokens, piece, logits
        start += size
        size = _tokens_at_once(logits)


def token_losses(
    logits: Float[Tensor, "token vocabulary"], targets: Int64[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """The loss of every token, fp32."""
    rows = zip(in_cache(logits), _alike(logits, targets), strict=True)
    losses = [
        torch.nn.functional.cross_entropy(own.float(), wanted, reduction="none")
        for own, wanted in rows
    ]
    return torch.cat(losses)


def loss_and_gradient(
    logits: Float[Tensor, "token vocabulary"], targets: Int64[Tensor, " token"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "token vocabulary"]]:
    """The summed loss, and its gradient by the logits in their dtype."""
    gradient, loss = torch.empty_like(logits), torch.zeros((), device=logits.device)
    rows = zip(in_cache(logits), in_cache(gradient), _alike(logits, targets), strict=True)
    for own, into, wanted in rows:
        logs = torch.log_softmax(own.float(), dim=-1)
        loss -= logs.gather(1, wanted[:, None]).sum()
        shares = logs.exp_()
        shares[torch.arange(len(wanted), device=wanted.device), wanted] -= 1
        into.copy_(shares)
    return loss, gradient


def _alike(logits: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """The targets in the same blocks as the logits."""
    start = 0
    for rows in in_cache(logits):
        yield targets[start : start + len(rows)]
        start += len(rows)


def each_loss(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "token hidden"],
    targets: Int64[Tensor, " token"],
) -> Float[Tensor, " token"]:
    """The loss of every token from its hidden states, fp32, on the device."""
    return torch.cat(
        [
            token_losses(logits, sent(targets[tokens], logits.device))
            for tokens, _, logits in in_pieces(logits_of, hidden)
        ]
    )


def summed_divergences(
    logits_of: Callable[[Tensor], Tensor],
    dense: Float[Tensor, "window token hidden"],
    others: Sequence[Float[Tensor, "window token _"]],
    others_logits_of: Callable[[Tensor], Tensor] | None = None,
) -> Float64[Tensor, " other"]:
    """KL(dense || other) = sum p (log p - log q) summed over tokens, of each other: on the device.

    The logits of the dense model are made once for all. `others_logits_of` is the head of the
    others, if that is not the same.
    """
    head = others_logits_of or logits_of
    rows, found = [other.flatten(0, 1) for other in others], []
    for tokens, _, wanted in in_pieces(logits_of, dense.flatten(0, 1)):
        apart = [token_divergences(wanted, head(own[None, tokens])[0]) for own in rows]
        found.append(torch.stack([of_each.double().sum() for of_each in apart]))
    return torch.stack(found).sum(dim=0)


def token_divergences(
    dense: Float[Tensor, "token vocabulary"], other: Float[Tensor, "token vocabulary"]
) -> Float[Tensor, " token"]:
    """The same of logits."""
    found = []
    for theirs, ours in zip(in_cache(dense), in_cache(other), strict=True):
        logs = torch.log_softmax(theirs, dim=-1, dtype=torch.float32)
        apart = logs - torch.log_softmax(ours, dim=-1, dtype=torch.float32)
        found.append(apart.mul_(logs.exp_()).sum(dim=-1))
    return torch.cat(found)


def divergence_and_gradient(
    logits: Float[Tensor, "token vocabulary"], dense: Float[Tensor, "token vocabulary"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "token vocabulary"]]:
    """The summed KL(dense || other) of logits, and its gradient by the other's, in their dtype."""
    gradient, total = torch.empty_like(logits), torch.zeros((), device=logits.device)
    for own, into, wanted in zip(
        in_cache(logits), in_cache(gradient), in_cache(dense), strict=True
    ):
        logs = torch.log_softmax(wanted, dim=-1, dtype=torch.float32)
        ours = torch.log_softmax(own, dim=-1, dtype=torch.float32)
        shares = logs.exp()
        total += (shares * (logs - ours)).sum()
        into.copy_(ours.exp_() - shares)
    return total, gradient


def divergence_gradient(
    logits_of: Callable[[Tensor], Tensor],
    dense: Float[Tensor, "token hidden"],
    hidden: Float[Tensor, "token hidden"],
    finite: Finite,
) -> tuple[Float[Tensor, ""], Float[Tensor, "token hidden"]]:
    """The summed KL(dense || other) and its gradient by the other's hidden states.

    `finite` is shown the divergence.
    """
    gradients, sums = [], []
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        for tokens, piece, logits in in_pieces(logits_of, leaf):
            with torch.no_grad():
                wanted = logits_of(dense[None, tokens])[0]
            total, gradient = divergence_and_gradient(logits.detach(), wanted)
            sums.append(total)
            gradients.append(torch.autograd.grad(logits, piece, gradient)[0][0])
    summed = torch.stack(sums)
    finite.see("the divergence (the output of the head)", summed, hidden.dtype)
    return summed.sum(), torch.cat(gradients)


def hidden_gradient(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "token hidden"],
    objective: Callable[[slice, Tensor], tuple[Tensor, Tensor]],
    finite: Finite,
) -> Float[Tensor, "token hidden"]:
    """Gradient by the hidden states of an `objective`: tokens and their logits to sum and gradient.

    `finite` is shown the sums.
    """
    gradients, losses = [], []
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        for tokens, piece, logits in in_pieces(logits_of, leaf):
            loss, gradient = objective(tokens, logits.detach())
            losses.append(loss)
            gradients.append(torch.autograd.grad(logits, piece, gradient)[0][0])
    finite.see("the loss (the output of the head)", torch.stack(losses), hidden.dtype)
    return torch.cat(gradients)
