"""Gradients of the loss, layer by layer through the same loop, reduced to units on the spot.

On the way forward the inputs of every layer are kept (hidden states only). On the way back from

    loss_n = -1/(T-1) sum_t log p(token t | tokens before it)     L = mean_n loss_n

each layer runs again, now with gradients; those of a member, one for every window where that is
asked for, are multiplied with its weight, summed up to units (`Weight`, `Taylor`) and dropped as
soon as they are there, and that of the layer's input takes the place of the input. No gradient of
the whole model ever exists. Terms of gates (`Gates`) are of other sums over tokens than that loss
(`objective`): for each of those there is a pass of its own.

What goes back is the gradient of (T-1) loss_n: the mean would put small gradients below what half
precision can hold. The factor is taken out in fp32.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import Kept, checksum, damaged
from ..errors import SecateurError
from ..registry import choose
from ..structure import Axis, Member
from .activations import Activations
from .collect import Statistics, find, what_is_missing
from .finite import Finite
from .fisher import OUTPUT_FISHER, OutputFisher
from .gates import GATES, Gates
from .linears import linears, tapped
from .loss import hidden_gradient
from .objective import DRAWN, ENTROPY, OBSERVED, Start, objective
from .products import Weight
from .stream import Call, LayerStep, Walk, hidden_of
from .taylor import MODES, TERMS, Taylor

GRADIENTS = (*(f"{mode}_{term}" for mode in MODES for term in TERMS), OUTPUT_FISHER, *GATES)

# Passes by what goes back in them, as the store knows them.
_KINDS = {
    OBSERVED: "gradients",
    DRAWN: "gradients of labels drawn by seed {seed}",
    ENTROPY: "gradients of entropy",
}
# So many tokens go down a layer at once, however many windows a batch has.
_TOKENS = 2**13


def collect_gradients(
    walk: Walk, axes: Sequence[Axis], needs: Iterable[str], *, seed: int = 0
) -> Statistics:
    """Walk the layers forward and back and collect the gradient terms `needs` of `axes`.

    `needs` are names of `GRADIENTS`; `statistics[axis][name]` is [member, unit, channel], or
    [sample, unit] for `samples_...` (see `Taylor`), [fan, fan] for `output_fisher` (see `fisher`),
    or [unit] for `gate_...` (see `gates`). `walk.limit` holds for the inputs of all layers
    together, and `seed` is that of labels which are drawn.

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
    batch = min(walk.batch, max(_TOKENS // length, 1))
    lowest = min(axis.layer for axis in axes)
    # the limit holds for the inputs of all layers, the last output and its gradient
    own = walk.shared().like(batch=batch, parts=len(walk.source) - lowest + 2)

    found = Statistics()
    for goes_back in sorted({_goes_back(need) for need in wanted}):
        alike = [need for need in wanted if _goes_back(need) == goes_back]
        kind = _KINDS[goes_back].format(seed=seed)
        look = partial(_look, own, kind, lowest, objective(goes_back, walk.tokens, seed))
        found.include(what_is_missing(own, kind, axes, alike, look))
    return found


def _goes_back(need: str) -> str:
    """What goes back through the layers for a term."""
    return GATES.get(need, OBSERVED)


def _look(
    walk: Walk,
    kind: str,
    lowest: int,
    start: Start,
    axes: Sequence[Axis],
    missing: Sequence[str],
) -> Kept:
    kept = walk.kept(kind, needs=missing, axes=[axis.name for axis in axes])
    if not kept.whole:
        _pass(walk, axes, missing, lowest, start, kept)
    return kept


def _pass(
    walk: Walk,
    axes: Sequence[Axis],
    needs: Sequence[str],
    lowest: int,
    start: Start,
    kept: Kept,
) -> None:
    """The pass: up, with the inputs of every layer kept, then down from what `start` makes."""
    count, length = walk.tokens.shape
    inputs = _Inputs(walk, lowest)
    if len(kept.done) < len(inputs.order):
        inputs.ascend()
        gradient = inputs.gradient(start, kept.state("gradient") if kept.done else None)
        going = {"gradient": gradient}
        single = cache(lambda: walk.like(batch=1).prepared())
        for step in walk.layers(kept, going, reverse=True, lowest=lowest, stage="gradients"):
            own = [axis for axis in axes if axis.layer == step.index]
            here = [Taylor(axis, needs, count, walk.source.device, walk.ranks) for axis in own]
            weights = _weights(step, here, 1 / (length - 1), count)
            gates = [need for need in needs if need in GATES]
            outputs: OutputFisher | Gates
            if gates:  # nothing else asks what goes back for one
                outputs = Gates(step, own, gates[0], count * (length - 1))
            else:
                outputs = OutputFisher(step, own if OUTPUT_FISHER in needs else [], gradient)
            states = inputs.at(step.index)
            descent = _Descent(states, gradient, here, weights, outputs, step.index > lowest)
            if gates or not descent.by_linears(step):
                together = not gates and all(weight.linear for weight in weights.values())
                descent.by_autograd(step if together else step.along(single()))
            step.finite.check()
            inputs.over(step.index)
            step.found = {**_found(here, weights.values()), **outputs.found()}
    inputs.kept.drop()
    kept.end()


def _found(here: Sequence[Taylor], weights: Iterable[Weight]) -> dict[str, Tensor]:
    """The terms of a layer's axes."""
    for weight in weights:
        weight.end()
    return {
        f"{taylor.axis.name}/{name}": tensor
        for taylor in here
        for name, tensor in taylor.finished().items()
    }


class _Inputs:
    """The inputs of the layers from `lowest` on (`order`), and the output of the last."""

    def __init__(self, walk: Walk, lowest: int) -> None:
        self._walk, self._end = walk, len(walk.source)
        self.kept = walk.kept_with_states("layer inputs", lowest=lowest)
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
            if self.kept.folder is not None:
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
            states = self._walk.kept_states(
                self.kept, f"input-{index}", (count, length, width), self._like.dtype
            )
            expected = self._sums.get(str(index))
            if expected is not None and expected != checksum(states.tensor):
                raise damaged(self.kept.folder or Path())
            self._states[index] = states
        return self._states[index]

    def over(self, index: int) -> None:
        """The input of a layer is needed no more."""
        self._states.pop(index, None)

    def gradient(self, start: Start, earlier: Tensor | None) -> Activations:
        """The gradient by the last output of what `start` makes, or that of an earlier run.

        Further down it is that by the output of the layer that is next.
        """
        count, length, width = self._like.shape
        gradient = self._walk.states((count, length, width), self._like.dtype)
        if earlier is None:
            _start(self._walk, self.at(self._end), start, gradient)
        else:
            gradient.tensor.copy_(earlier)
        self.over(self._end)
        return gradient


def _start(walk: Walk, states: Activations, start: Start, into: Activations) -> None:
    """The gradient of what `start` makes of every window, by the last hidden states.

    Raises:
        SecateurError: a sum is not finite.
    """
    finite = Finite(walk.ranks)
    with walk.source.back() as logits_of:
        for windows in walk.batches:
            last = states[windows].to(walk.source.device)
            gradient = torch.zeros_like(last)
            hidden = last[:, :-1].flatten(0, 1)
            found = hidden_gradient(logits_of, hidden, start(windows), finite)
            gradient[:, :-1] = found.view_as(gradient[:, :-1])
            into[windows] = gradient
    finite.check()


def _weights(
    step: LayerStep, here: Sequence[Taylor], scale: float, windows: int
) -> dict[nn.Parameter, Weight]:
    """The tensors of a layer that members are slices of."""
    owners: dict[nn.Parameter, list[tuple[Taylor, Member]]] = {}
    for taylor in (taylor for taylor in here if taylor.asked):
        for member in taylor.axis.members:
            parameter = getattr(find(step.module, member.module, step.index), member.parameter)
            owners.setdefault(parameter, []).append((taylor, member))
    return {parameter: Weight(parameter, own, scale, windows) for parameter, own in owners.items()}


@dataclass(frozen=True)
class _Descent:
    """A layer on the way down: `gradients` are of its output, and become those of its input.

    `input_too` is False where nobody asks for the latter.
    """

    states: Activations
    gradients: Activations
    here: Sequence[Taylor]
    weights: Mapping[nn.Parameter, Weight]
    outputs: OutputFisher | Gates
    input_too: bool

    def by_linears(self, step: LayerStep) -> bool:
        """Descend by what passes the linears; False, and nothing done, if that is not enough."""
        chosen = linears(step.module, self.weights)
        if chosen is None:
            return False
        for number, (windows, inputs, call) in enumerate(step.batches(self.states)):
            leaf = inputs.detach().requires_grad_()
            shape = (leaf.shape[0], leaf.shape[1])
            with (
                tapped(chosen, shape, step.finite, check=number == 0) as plain,
                self.outputs.listening(),
            ):
                output = _forward(step, leaf, call)
                if not plain():
                    assert number == 0, "what is plain for some windows is for all"
                    return False
                output.backward(self.gradients[windows].to(output.device))
                del output  # the graph, and what hooks keep, before the next one is made
            self._end(step, windows, leaf)
        return True

    def by_autograd(self, step: LayerStep) -> None:
        """Descend with gradients of the parameters, each dropped as soon as it is there."""
        with _listening(self.weights, step):
            for windows, inputs, call in step.batches(self.states):
                leaf = inputs.detach().requires_grad_(self.input_too or not self.weights)
                with self.outputs.listening():
                    output = _forward(step, leaf, call)
                    output.backward(self.gradients[windows].to(output.device))
                del output
                self._end(step, windows, leaf)

    def _end(self, step: LayerStep, windows: slice, leaf: Tensor) -> None:
        """Some windows went down."""
        self.outputs.passed(windows)
        for taylor in self.here:
            taylor.end_windows()
        if self.input_too:
            assert leaf.grad is not None, "it was asked for"
            step.finite.see(f"the gradient of the input of layer {step.index}", leaf.grad)
            self.gradients[windows] = leaf.grad


def _forward(step: LayerStep, hidden: Tensor, call: Call) -> Tensor:
    with torch.enable_grad():
        return hidden_of(step.module(hidden, *call[0], **call[1]))


@contextmanager
def _listening(weights: Mapping[nn.Parameter, Weight], step: LayerStep) -> Iterator[None]:
    """Hand every gradient to its tensor's owners; nothing of it is left afterwards."""
    hooks = [
        parameter.requires_grad_().register_post_accumulate_grad_hook(_listener(weight, step))
        for parameter, weight in weights.items()
    ]
    try:
        yield
    finally:
        for hook, parameter in zip(hooks, weights, strict=True):
            hook.remove()
            parameter.requires_grad_(False).grad = None


def _listener(weight: Weight, step: LayerStep) -> Callable[[Tensor], None]:
    def reduce(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None, "the hook runs when there is a gradient"
        weight.add([gradient[None]], step.finite)

    return reduce
