"""Gradients of the loss, layer by layer through the same loop, reduced to units on the spot.

On the way forward the inputs of every layer are kept (hidden states only). On the way back from

    loss_n = -1/(T-1) sum_t log p(token t | tokens before it)     L = mean_n loss_n

each layer runs again window by window, now with gradients; that of a member is multiplied with its
weight, summed up to units (`Taylor`) and dropped as soon as it is there, and that of the layer's
input takes the place of the input. No gradient of the whole model ever exists.

What goes back is the gradient of (T-1) loss_n: the mean would put small gradients below what half
precision can hold. The factor is taken out in fp32.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import Kept, checksum, damaged
from ..errors import SecateurError
from ..registry import choose
from ..structure import Axis, Member
from .activations import Activations
from .collect import Statistics, find, what_is_missing
from .finite import not_finite
from .loss import hidden_gradient
from .stream import LayerStep, Walk, hidden_of
from .taylor import MODES, TERMS, Taylor

GRADIENTS = tuple(f"{mode}_{term}" for mode in MODES for term in TERMS)

# Needs for which the gradients of several windows may be summed before anything else happens.
_LINEAR = {"batch_vector", "batch_coarse", "batch_first"}


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
    if not wanted or not axes:
        return Statistics()
    count, length = walk.tokens.shape
    if not count or length < 2:
        raise SecateurError("Gradients need at least one calibration window of two tokens.")
    batch = walk.batches[0].stop if wanted <= _LINEAR else 1
    lowest = min(axis.layer for axis in axes)
    # the limit holds for the inputs of all layers, the last output and its gradient
    own = walk.like(batch=batch, parts=len(walk.source) - lowest + 2)

    def look(axes: Sequence[Axis], missing: list[str]) -> Kept:
        kept = own.kept("gradients", needs=missing, axes=[axis.name for axis in axes])
        if not kept.whole:
            _pass(own, axes, missing, lowest, kept)
        return kept

    return what_is_missing(own, "gradients", axes, wanted, look)


def _pass(walk: Walk, axes: Sequence[Axis], needs: Sequence[str], lowest: int, kept: Kept) -> None:
    """The pass: up, with the inputs of every layer kept, then down from the loss."""
    count, length = walk.tokens.shape
    inputs = _Inputs(walk, lowest)
    if len(kept.done) < len(inputs.order):
        inputs.ascend()
        gradient = inputs.gradient(kept.state("gradient") if kept.done else None)
        for step in walk.layers(
            kept, {"gradient": gradient}, reverse=True, lowest=lowest, stage="gradients"
        ):
            here = [
                Taylor(axis, needs, count, 1 / (length - 1), walk.source.device)
                for axis in axes
                if axis.layer == step.index
            ]
            with _reduced(step, here):
                _descend(step, inputs.at(step.index), gradient, here, lowest)
            inputs.over(step.index)
            step.found = {
                f"{taylor.axis.name}/{name}": tensor
                for taylor in here
                for name, tensor in taylor.finished().items()
            }
    inputs.kept.drop()
    kept.end()


class _Inputs:
    """The inputs of the layers from `lowest` on (`order`), and the output of the last."""

    def __init__(self, walk: Walk, lowest: int) -> None:
        self._walk, self._end = walk, len(walk.source)
        self.kept = walk.kept("layer inputs", lowest=lowest)
        self.order = [i for i in range(lowest, self._end) if i not in walk.without]
        self._states: dict[int, Activations] = {}
        self._sums = {
            name: total
            for index in self.kept.layers
            for name, total in (self.kept.value(index) or {}).items()
        }

    def ascend(self) -> None:
        """Go up the layers, from where an earlier run was cut short."""
        hidden = self._walk.embed(self.kept)
        going = {"hidden": hidden}
        first, after = self.order[0], dict(itertools.pairwise([*self.order, self._end]))
        self._like = hidden.tensor.new_empty(hidden.tensor.shape, device="meta")
        if self.kept.whole:
            return
        for step in self._walk.layers(self.kept, going, stage="layer inputs"):
            if step.index < first:
                step.run(hidden)
                continue
            if step.index == first:
                self._begin(first, hidden)
                going.clear()
            into = self.at(after[step.index])
            step.run(self.at(step.index), into=into)
            step.value = {
                str(index): checksum(self.at(index).tensor)
                for index in (step.index, after[step.index])
            }
        self.kept.end()

    def _begin(self, first: int, hidden: Activations) -> None:
        if self.kept.folder is None:
            self._states[first] = hidden
        else:
            self.at(first).tensor.copy_(hidden.tensor)

    def at(self, index: int) -> Activations:
        """The input of a layer, or the last output.

        Raises:
            SecateurError: an earlier run left it damaged.
        """
        if index not in self._states:
            count, length, width = self._like.shape
            states = Activations.kept(
                self.kept,
                f"input-{index}",
                (count, length, width),
                self._like.dtype,
                self._walk.limit,
            )
            expected = self._sums.get(str(index))
            if expected is not None and expected != checksum(states.tensor):
                raise damaged(self.kept.folder or Path())
            self._states[index] = states
        return self._states[index]

    def over(self, index: int) -> None:
        """The input of a layer is needed no more."""
        self._states.pop(index, None)

    def gradient(self, earlier: Tensor | None) -> Activations:
        """The gradient of every window's summed loss by the last output, or that of an earlier run.

        Further down it is that by the output of the layer that is next.
        """
        count, length, width = self._like.shape
        gradient = Activations((count, length, width), self._like.dtype, limit=self._walk.limit)
        if earlier is None:
            _start(self._walk, self.at(self._end), gradient)
        else:
            gradient.tensor.copy_(earlier)
        self.over(self._end)
        return gradient


def _start(walk: Walk, states: Activations, into: Activations) -> None:
    """The gradient of every window's summed loss by the last hidden states."""
    with walk.source.back() as logits_of:
        for windows in walk.batches:
            gradient = torch.zeros_like(states[windows])
            hidden = states[windows][:, :-1].flatten(0, 1)
            targets = walk.tokens[windows][:, 1:].flatten()
            gradient[:, :-1] = hidden_gradient(logits_of, hidden, targets).view_as(gradient[:, :-1])
            into[windows] = gradient


def _descend(
    step: LayerStep,
    states: Activations,
    gradients: Activations,
    here: Sequence[Taylor],
    lowest: int,
) -> None:
    """Send `gradients` of the layer's output down to its input `states`: they become of that."""
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
            gradients[windows] = leaf.grad


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
