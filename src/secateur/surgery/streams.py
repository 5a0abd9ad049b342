"""One layer of the dense model and of the student, each of its parts run once.

    streams.run_dense()                       what the targets are made of; the dense states go on
    for consumer, in calling order:
        streams.left_by(consumer)             its inputs Z and what is left to give, R, by batch
        streams.settle(consumer, W, b)        what it gives from now on is known
    streams.run_student()                     the student's states go on

With y_j the outputs of the consumers in calling order, h the layer's input, m the scalar with which
they join the stream and ' the student's,

    dense_output, one_shot   R = y_i - y'_i
    own_output               R = what the dense weights give - y'_i
    residual                 R = y_i - y'_i + sum over j < i of (y_j - y'_j) + (h - h') / m
    residual, before a gap   R = (S* - h') / m - sum over j <= i of y'_j
    residual, behind norms   R = y_i - y'_i + U( sum over j < i of (N y_j - N y'_j) + h - h' )

S* is the dense stream after the gap; N is a norm between a consumer and the stream, U undoes it
(`norms`). The consumers before i are settled, so what they give is their new weights times the
inputs that were kept. Where a block gives nothing but that (`replay`), it is not run again: for
o_proj the student runs its attention, for down_proj its MLP, and at the end only what lies between.

Tokens count by how little there is in their stream (`stats.spread`): those with massive streams
would own the fit.

Inputs and outputs live as long as the layer is repaired, as hidden states do: for all windows, and
memory-mapped where they are too large.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from ..stats import Activations, LayerStep
from ..stats.spread import token_weights
from ..stats.stream import Call, hidden_of
from ..stats.substitute import substituted
from ..structure import Axis
from .norms import before_norm, normed
from .observe import Consumer, watch
from .replay import Anatomy, inputs_of, replayed

TARGETS = {
    "residual": "the dense residual stream after the sub-block",
    "dense_output": "the dense model's output of the consumer",
    "own_output": "the consumer's own output before the cut",
    "one_shot": "the dense model's output, on the dense model's inputs",
}


def parts_kept(axes: Sequence[Axis]) -> int:
    """How many sets of states are kept of a layer at once: a gap, and two of each consumer."""
    fine = Counter(axis.layer for axis in axes if not axis.of and axis.consumer.linear)
    return 1 + 2 * max(fine.values(), default=0)


@dataclass(frozen=True)
class Left:
    """One batch at a consumer: its inputs Z, what it `gives`, and what is `left` to give, R.

    `weights` say how much each token counts.
    """

    windows: slice
    inputs: Float[Tensor, "window token in"]
    gives: Float[Tensor, "window token out"]
    left: Float[Tensor, "window token out"]
    weights: Float[Tensor, "window token"]

    def tokens(self, windows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, what is left and weights of all tokens of some windows of the batch."""
        inputs, left = (part[windows].flatten(0, -2) for part in (self.inputs, self.left))
        return inputs, left, self.weights[windows].flatten()

    def power(self, windows: slice) -> Float[Tensor, ""]:
        """Weighed squares of the targets of some windows of the batch."""
        targets = (self.left[windows] + self.gives[windows]).square().sum(dim=-1)
        return (targets * self.weights[windows]).sum()


@dataclass(eq=False)
class Streams:
    """Both models in one layer; `consumers` in calling order, `student` None: the dense one alone.

    The `anatomy` is that of the first batch of the dense model. `ahead` has the dense stream after
    the gap that follows a consumer. `edits` are parameters that the student has in this layer
    besides those of settled consumers.
    """

    step: LayerStep
    consumers: Sequence[Consumer]
    dense: Activations
    student: Activations | None
    asked: str
    anatomy: Anatomy
    ahead: Mapping[str, Activations]
    edits: dict[tuple[nn.Module, str], nn.Parameter | None] = field(default_factory=dict)
    _gap: Activations | None = None
    _outputs: dict[str, Activations] = field(default_factory=dict)
    _inputs: dict[str, Activations] = field(default_factory=dict)
    _settled: dict[Consumer, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def target(self, consumer: Consumer) -> str:
        """The target that a consumer can have."""
        name = consumer.name
        reached = self.anatomy.multipliers[name] or name in self.anatomy.gains
        return "dense_output" if self.asked == "residual" and not reached else self.asked

    def run_dense(self) -> None:
        """Send all windows through the dense layer, and keep what the targets are made of.

        Raises:
            SecateurError: the layer's output is not finite.
        """
        module, finite = self.step.module, self.step.finite
        for windows, hidden, call in self.step.batches(self.dense):
            self._keep_gap(windows, hidden)
            note = partial(self._note, windows)
            if windows == self.step.walk.batches[0]:
                after = self.anatomy.seen.replay(self.consumers, note)
            else:
                after = watch(module, hidden, call, self.consumers, note)
            finite.see(f"the output of layer {self.step.index}", after)
            self.dense[windows] = after
        finite.check()

    def _keep_gap(self, windows: slice, hidden: Tensor) -> None:
        """Keep how far the student's stream is from the dense one before the layer."""
        if self.student is None or self.asked != "residual":
            return
        if self._gap is None:
            count, length, width = self.dense.tensor.shape
            self._gap = self.step.walk.states((count, length, width), hidden.dtype)
        self._gap[windows] = hidden - self.student[windows].to(hidden.device)

    def _note(self, windows: slice, consumer: Consumer, inputs: Tensor, output: Tensor) -> None:
        """Keep what the repair wants of what passes a consumer of the dense layer."""
        if self.student is None:
            self._keep(self._inputs, consumer, windows, consumer.chosen(inputs))
        if self.asked != "own_output":
            self._keep(self._outputs, consumer, windows, output)

    def left_by(self, consumer: Consumer) -> Iterator[Left]:
        """What a consumer that is cut, and not yet settled, is given and leaves to give.

        The student's layer runs as far as that the first time; afterwards its inputs are known.
        """
        weight, bias = consumer.weight, consumer.bias
        run = consumer.name not in self._inputs
        for windows, hidden, call in self.step.batches(self.student or self.dense):
            earlier = self._given(windows, hidden.device)
            if run:
                self._run_to(consumer, windows, hidden, call, earlier)
            inputs = self._inputs[consumer.name][windows].to(hidden.device)
            gives = linear(inputs, weight, bias)
            left = self._left(consumer, windows, hidden, gives, earlier)
            weights = self._weights(consumer, windows, hidden)
            yield Left(windows, inputs, gives, left, weights)

    def _weights(
        self, consumer: Consumer, windows: slice, hidden: Tensor
    ) -> Float[Tensor, "window token"]:
        """How much each token of a batch counts."""
        if self.target(consumer) != "residual":
            return torch.ones(hidden.shape[:-1], device=hidden.device)
        if consumer.name not in self.anatomy.gains:
            return token_weights(hidden)
        return token_weights(hidden, self._outputs[consumer.name][windows].to(hidden.device))

    def _left(
        self,
        consumer: Consumer,
        windows: slice,
        hidden: Tensor,
        gives: Tensor,
        earlier: Mapping[Consumer, Tensor],
    ) -> Float[Tensor, "window token out"]:
        """What a consumer leaves to give of one batch, fp32.

        Likes are subtracted from each other first: where nothing is lost, nothing is left.
        """

        def of(states: Activations) -> Float[Tensor, "window token out"]:
            return states[windows].to(hidden.device, torch.float32, copy=True)

        name, multiplier = consumer.name, self.anatomy.multipliers[consumer.name]
        if self.target(consumer) != "residual":
            return of(self._outputs[name]).sub_(gives)
        if not multiplier:
            output = of(self._outputs[name])
            lacks = before_norm(self._lacking(consumer, windows, earlier), output, self._gain(name))
            return output.sub_(gives).add_(lacks)
        if name in self.ahead:
            left = of(self.ahead[name]).sub_(hidden).div_(multiplier).sub_(gives)
            for output in earlier.values():
                left -= output
            return left
        left = of(self._outputs[name]).sub_(gives)
        for other in self.consumers[: self.consumers.index(consumer)]:
            left += self._outputs[other.name][windows].to(hidden.device)
            if other in earlier:
                left -= earlier[other]
        if self._gap is not None:
            left.add_(self._gap[windows].to(hidden.device), alpha=1 / multiplier)
        return left

    def _gain(self, name: str) -> Float[Tensor, " out"]:
        return self.anatomy.gains[name]

    def _lacking(
        self, consumer: Consumer, windows: slice, earlier: Mapping[Consumer, Tensor]
    ) -> Float[Tensor, "window token out"]:
        """What the student's stream lacks before a consumer that is behind a norm, fp32."""
        device = consumer.weight.device
        shape = self._outputs[consumer.name][windows].shape
        lacks = torch.zeros(shape, device=device)
        if self._gap is not None:
            lacks += self._gap[windows].to(device)
        for other in self.consumers[: self.consumers.index(consumer)]:
            gain = self._gain(other.name)
            lacks += normed(self._outputs[other.name][windows].to(device), gain)
            if other in earlier:
                lacks -= normed(earlier[other], gain)
        return lacks

    def settle(
        self, consumer: Consumer, weight: Float[Tensor, "out in"], bias: Tensor | None
    ) -> None:
        """From now on a consumer has these weights, in the student."""
        dtype = consumer.weight.dtype
        own = weight.to(dtype).contiguous(), None if bias is None else bias.to(dtype)
        self._settled[consumer] = own

    def run_student(self) -> None:
        """Send all windows through the student's layer.

        Raises:
            SecateurError: the layer's output is not finite.
        """
        if self.student is None:
            return
        finite = self.step.finite
        for windows, hidden, call in self.step.batches(self.student):
            with self._as_student(self._given(windows, hidden.device)):
                after = hidden_of(self.step.module(hidden, *call[0], **call[1]))
            finite.see(f"the output of layer {self.step.index}", after)
            self.student[windows] = after
        finite.check()

    def _run_to(
        self,
        consumer: Consumer,
        windows: slice,
        hidden: Tensor,
        call: Call,
        earlier: Mapping[Consumer, Tensor],
    ) -> None:
        """Run one batch as far as a consumer, and keep what that is given."""
        with self._as_student(earlier):
            inputs = inputs_of(self.step.module, hidden, call, consumer)
        self._keep(self._inputs, consumer, windows, consumer.chosen(inputs))
        if self.asked == "own_output":
            with torch.no_grad():
                self._keep(self._outputs, consumer, windows, consumer.module(inputs))

    @contextmanager
    def _as_student(self, outputs: Mapping[Consumer, Tensor]) -> Iterator[None]:
        """The layer is the student's, and the blocks of settled consumers are not run."""
        known = {self.anatomy.blocks[consumer.name]: given for consumer, given in outputs.items()}
        with substituted(self.edits), replayed(known), torch.no_grad():
            yield

    def _given(self, windows: slice, device: torch.device) -> dict[Consumer, Tensor]:
        """What the consumers that are settled give, of one batch."""
        return {
            consumer: linear(self._inputs[consumer.name][windows].to(device), *own)
            for consumer, own in self._settled.items()
        }

    def _keep(
        self, kept: dict[str, Activations], consumer: Consumer, windows: slice, part: Tensor
    ) -> None:
        """Keep a part [window, token, channel] of what is known of a consumer."""
        name = consumer.name
        if name not in kept:
            shape = (len(self.dense.tensor), part.shape[1], part.shape[2])
            kept[name] = self.step.walk.states(shape, part.dtype)
        kept[name][windows] = part
