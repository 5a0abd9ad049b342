"""Gradients of the loss, layer by layer through the same loop, reduced to units on the spot.

On the way forward the inputs of every layer are kept (hidden states only). On the way back from

    loss_n = -1/(T-1) sum_t log p(token t | tokens before it)     L = mean_n loss_n

each layer runs again window by window, now with gradients; that of a member is multiplied with its
weight, summed up to units (`Taylor`) and dropped as soon as it is there, and that of the layer's
input takes the place of the input. No gradient of the whole model ever exists.

What goes back is the gradient of (T-1) loss_n: the mean would put small gradients below what half
precision can hold. The factor is taken out in fp32.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..errors import SecateurError
from ..registry import choose
from ..structure import Axis, Member
from .activations import Activations
from .collect import Statistics, Tally, find
from .stream import LayerStep, Walk, hidden_of, not_finite
from .taylor import MODES, TERMS, Taylor

GRADIENTS = tuple(f"{mode}_{term}" for mode in MODES for term in TERMS)

# Needs for which the gradients of several windows may be summed before anything else happens.
_LINEAR = {"batch_vector", "batch_coarse", "batch_first"}

# Logits are made for so many values at once: 2^24 are 64 MiB in fp32, whatever the vocabulary.
_LOGITS_AT_ONCE = 2**24


def collect_gradients(walk: Walk, axes: Sequence[Axis], needs: Iterable[str]) -> Statistics:
    """Walk the layers forward and back and collect the gradient terms `needs` of `axes`.

    `needs` are names of `GRADIENTS`; `statistics[axis][name]` is [member, unit, channel], or
    [sample, unit] for `samples_...` (see `Taylor`). The windows go one by one, except for needs
    that are linear in the gradient; `walk.limit` holds for the inputs of all layers together.

    Raises:
        SecateurError: an unknown need, no windows or windows of one token, or a loss or a gradient
            that is not finite.
    """
    wanted = {choose("gradient term", name, dict.fromkeys(GRADIENTS, name)) for name in needs}
    statistics = Statistics()
    if not wanted or not axes:
        return statistics
    count, length = walk.tokens.shape
    if not count or length < 2:
        raise SecateurError("Gradients need at least one calibration window of two tokens.")
    lowest = min(axis.layer for axis in axes)
    own = _own_walk(walk, wanted, lowest)
    kept = _kept_inputs(own, lowest)
    _start(own, kept[-1])
    for step in own.layers(reverse=True, lowest=lowest, stage="gradients"):
        here = [
            Taylor(axis, wanted, count, 1 / (length - 1), own.source.device)
            for axis in axes
            if axis.layer == step.index
        ]
        with _reduced(step, here):
            _descend(step, kept[-2], kept[-1], here, lowest)
        kept.pop()
        for taylor in here:
            statistics.tallies[taylor.axis.name] = Tally(gradients=taylor.finished())
    return statistics


def _own_walk(walk: Walk, needs: set[str], lowest: int) -> Walk:
    """The same way window by window where that is needed, the limit shared by all layers."""
    batch = walk.batches[0].stop if needs <= _LINEAR else 1
    kept = len(walk.source) - lowest + 1
    limit = walk.limit // kept
    return Walk(walk.source, walk.tokens, batch=batch, limit=limit, without=walk.without)


def _kept_inputs(walk: Walk, lowest: int) -> list[Activations]:
    """The inputs of the layers from `lowest` on, and the output of the last."""
    kept = [walk.embed()]
    for step in walk.layers(stage="layer inputs"):
        states = kept[-1]
        if step.index >= lowest:
            count, length, width = states.tensor.shape
            kept.append(Activations((count, length, width), states.tensor.dtype, limit=walk.limit))
        step.run(states, into=kept[-1])
    return kept


def _start(walk: Walk, states: Activations) -> None:
    """Replace the last hidden states by the gradient of every window's summed loss."""
    with walk.source.back() as logits_of:
        for windows in walk.batches:
            gradient = torch.zeros_like(states[windows])
            hidden = states[windows][:, :-1].flatten(0, 1)
            targets = walk.tokens[windows][:, 1:].flatten()
            pieces = torch.cat(list(_loss_gradients(logits_of, hidden, targets)))
            gradient[:, :-1] = pieces.view_as(gradient[:, :-1])
            states[windows] = gradient


def _loss_gradients(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "token hidden"],
    targets: Int64[Tensor, " token"],
) -> Iterator[Float[Tensor, "piece hidden"]]:
    """Gradients of the summed loss, in pieces that keep the logits small.

    Raises:
        SecateurError: the loss is not finite.
    """
    start, piece = 0, 64
    while start < len(targets):
        leaf = hidden[None, start : start + piece].detach().requires_grad_()
        with torch.enable_grad():
            logits = logits_of(leaf)[0].float()
            wanted = targets[start : start + piece].to(logits.device)
            loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        if not torch.isfinite(loss):
            raise not_finite("the loss (the output of the head)", hidden.dtype)
        yield torch.autograd.grad(loss, leaf)[0][0]
        start += piece
        piece = max(64, _LOGITS_AT_ONCE // logits.shape[-1])


def _descend(
    step: LayerStep,
    states: Activations,
    gradients: Activations,
    here: Sequence[Taylor],
    lowest: int,
) -> None:
    """Send `gradients` of the layer's output down to its input, where they replace `states`."""
    for windows, inputs, (args, kwargs) in step.batches(states):
        leaf = inputs.detach().requires_grad_(step.index > lowest)
        with torch.enable_grad():
            output = hidden_of(step.module(leaf, *args, **kwargs))
        output.backward(gradients[windows].to(output.device))
        for taylor in here:
            taylor.end_window()
        if leaf.grad is not None:
            if not torch.isfinite(leaf.grad).all():
                raise not_finite(f"the gradient of the input of layer {step.index}", leaf.dtype)
            states[windows] = leaf.grad


@contextmanager
def _reduced(step: LayerStep, here: Sequence[Taylor]) -> Iterator[None]:
    """Hand every member's gradient to its axis and drop it; nothing of it is left afterwards."""
    listeners: dict[nn.Parameter, list[tuple[Taylor, Member]]] = {}
    for taylor in here:
        for member in taylor.axis.members:
            parameter = getattr(find(step.module, member.module, step.index), member.parameter)
            listeners.setdefault(parameter, []).append((taylor, member))
    hooks = [
        parameter.requires_grad_().register_post_accumulate_grad_hook(_listener(members))
        for parameter, members in listeners.items()
    ]
    try:
        yield
    finally:
        for hook, parameter in zip(hooks, listeners, strict=True):
            hook.remove()
            parameter.requires_grad_(False).grad = None


def _listener(members: Sequence[tuple[Taylor, Member]]) -> Callable[[Tensor], None]:
    def reduce(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None, "the hook runs when there is a gradient"
        for taylor, member in members:
            taylor.add(member, parameter.detach(), gradient)

    return reduce
