"""What a layer does while it runs: what passes its consumers, and what it adds to the stream.

That a layer adds the outputs of its consumers to the residual stream, perhaps times a scalar, is
asked of the numbers and not of the family: see `stream_multipliers`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..stats.stream import Call, hidden_of
from ..stats.substitute import Substitutes
from ..structure import Axis, Plan

# Distance from 1 at which a measured multiplier is 1: in bf16 it cannot be told more exactly.
_NEARLY_ONE = 0.01
_TOKENS = 512


@dataclass(frozen=True, eq=False)
class Consumer:
    """A consumer in its layer: its module and which channels it keeps."""

    name: str
    dim: int
    module: nn.Module
    kept: Int64[Tensor, " in"]
    owner: Int64[Tensor, " in"]

    @classmethod
    def of(cls, axis: Axis, plan: Plan, layer: nn.Module) -> "Consumer":
        """The consumer of `axis` in `layer`, cut by `plan`."""
        member = axis.consumer
        module = layer.get_submodule(member.module.partition(f".{axis.layer}.")[2])
        size = module._parameters["weight"].shape[member.dim]  # type: ignore[union-attr]
        owner = torch.full((size,), -1)
        kept = member.blocks.indices(plan.kept_tensor(axis))
        owner[kept] = torch.arange(len(kept))[:, None]
        stays = torch.ones(size, dtype=torch.bool)
        stays[member.blocks.indices(plan.removed_tensor(axis)).flatten()] = False
        return cls(member.module, member.dim, module, stays.nonzero().flatten(), owner[stays])

    @cached_property
    def weight(self) -> Float[Tensor, "out in"]:
        """The weights that stay, as the module holds them when they are first asked for."""
        whole = self.module._parameters["weight"]
        assert whole is not None
        some = whole.detach().index_select(self.dim, self._index)
        return some if self.dim else some.T

    @cached_property
    def _index(self) -> Int64[Tensor, " in"]:
        """`kept` where the weight is: copying it to a GPU waits."""
        whole = self.module._parameters["weight"]
        assert whole is not None
        return self.kept.to(whole.device)

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        """The bias as the module holds it now."""
        bias = self.module._parameters.get("bias")
        return None if bias is None else bias.detach()

    def chosen(self, inputs: Float[Tensor, "*token width"]) -> Float[Tensor, "*token in"]:
        """The channels that stay, of inputs of the dense width."""
        if len(self.kept) == inputs.shape[-1]:
            return inputs
        # on a CPU twice as fast as indexing by them
        index = self._index.expand(*inputs.shape[:-1], -1)
        return inputs.gather(-1, index)

    def edit(self, weight: Float[Tensor, "out in"], bias: Tensor | None) -> Substitutes:
        """Parameters of the dense shape that compute what the cut consumer does."""
        whole = self.module._parameters["weight"]
        assert whole is not None
        wide = torch.zeros_like(whole.detach().movedim(self.dim, 0))
        wide[self._index] = weight.T.to(whole.dtype)
        added = None if bias is None else nn.Parameter(bias.to(whole.dtype), requires_grad=False)
        return {
            (self.module, "weight"): nn.Parameter(wide.movedim(0, self.dim), requires_grad=False),
            (self.module, "bias"): added,
        }


# Told of a consumer what it was given and what it gave, both [window, token, channel].
Passed = Callable[[Consumer, Tensor, Tensor], None]


@dataclass(frozen=True)
class Seen:
    """One batch through a layer: its input and output, and each consumer's, in calling order."""

    before: Tensor
    after: Tensor
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    def replay(self, consumers: Sequence[Consumer], passed: Passed) -> Tensor:
        """What `watch` would do with the same batch."""
        for consumer in consumers:
            passed(consumer, self.inputs[consumer.name], self.outputs[consumer.name])
        return self.after


def watch(
    layer: nn.Module,
    hidden: Tensor,
    call: Call,
    consumers: Sequence[Consumer],
    passed: Passed,
) -> Tensor:
    """Run `layer` on `hidden` [window, token, hidden]; `passed` sees what passes its consumers.

    It sees inputs and outputs [window, token, channel] when they are there, and must copy what it
    keeps of the outputs: Falcon adds its attention to what its MLP gave, in place.
    """

    def record(consumer: Consumer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            # some families flatten windows and tokens before the MLP
            shape = hidden.shape[:-1]
            passed(consumer, args[0].detach().view(*shape, -1), output.detach().view(*shape, -1))

        return hook

    with hooked(c.module.register_forward_hook(record(c)) for c in consumers), torch.no_grad():
        return hidden_of(layer(hidden, *call[0], **call[1]))


def see(layer: nn.Module, hidden: Tensor, call: Call, consumers: Sequence[Consumer]) -> Seen:
    """Run `layer` on `hidden` [window, token, hidden] and keep what passes its consumers."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(consumer: Consumer, before: Tensor, after: Tensor) -> None:
        inputs[consumer.name], outputs[consumer.name] = before, after.clone()

    after = watch(layer, hidden, call, consumers, keep)
    return Seen(hidden, after, inputs, outputs)


def stream_multipliers(
    layer: nn.Module, hidden: Tensor, call: Call, consumers: Sequence[Consumer]
) -> dict[str, float | None]:
    """For each consumer, in calling order, the scalar m with which its output joins the stream.

    Either the layer's output is its input plus m times the sum of all outputs; or some module of
    the layer is given the input plus m times the outputs so far (attention, before a mixture of
    experts). None where neither holds: a norm stands between.
    """
    return see_multipliers(layer, hidden, call, consumers)[1]


def see_multipliers(
    layer: nn.Module, hidden: Tensor, call: Call, consumers: Sequence[Consumer]
) -> tuple[Seen, dict[str, float | None]]:
    """What passes the consumers, and their `stream_multipliers`: one run of the layer."""
    streams: list[tuple[int, Tensor]] = []
    called: list[str] = []

    def passed(module: nn.Module, args: tuple[Any, ...]) -> None:
        first = args[0] if args else None
        if called and isinstance(first, Tensor) and first.shape == hidden.shape:
            streams.append((len(called), _some(first.detach()).clone()))

    marks = (
        c.module.register_forward_hook(lambda *_, name=c.name: called.append(name))
        for c in consumers
    )
    inner = [module for path, module in layer.named_modules() if path]
    with hooked(marks), hooked(m.register_forward_pre_hook(passed) for m in inner):
        seen = see(layer, hidden, call, consumers)
    before, outputs = _some(seen.before), [_some(output) for output in seen.outputs.values()]
    whole = residual_multiplier(before, _some(seen.after), outputs)
    if whole is not None:
        return seen, dict.fromkeys(seen.outputs, whole)
    found: dict[str, float | None] = {}
    for count, name in enumerate(seen.outputs, start=1):
        tried = (
            residual_multiplier(before, stream, outputs[:count])
            for after, stream in streams
            if after == count
        )
        found[name] = next((m for m in tried if m is not None), None)
    return seen, found


def _some(states: Float[Tensor, "window token hidden"]) -> Float[Tensor, "some hidden"]:
    """As many tokens as it takes to tell how a layer adds."""
    return states.flatten(0, 1)[:_TOKENS]


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Hooks that are gone afterwards, on errors too."""
    placed = list(handles)
    try:
        yield
    finally:
        for handle in placed:
            handle.remove()


def residual_multiplier(
    before: Float[Tensor, "*token hidden"],
    after: Float[Tensor, "*token hidden"],
    outputs: Sequence[Float[Tensor, "*token hidden"]],
) -> float | None:
    """The scalar m of a layer that computes after = before + m sum(outputs); None if it does not.

    An element tells something where the outputs exceed the rounding of the stream; 99% of those
    must agree.
    """
    total = torch.stack([output.float() for output in outputs]).sum(dim=0)
    size = torch.stack([output.float().abs() for output in outputs]).sum(dim=0)
    rounding = torch.finfo(after.dtype).eps
    delta = after.float() - before.float()
    power = float(total.square().sum())
    multiplier = float((delta * total).sum()) / power if power > 0 else 0.0
    if abs(multiplier - 1) < _NEARLY_ONE:
        multiplier = 1.0
    tolerance = 2 * rounding * (before.float().abs() + after.float().abs() + size)
    telling = (multiplier * total).abs() > 4 * tolerance
    agrees = (delta - multiplier * total).abs() <= tolerance
    if telling.float().mean() < 0.01 or agrees[telling].float().mean() < 0.99:
        return None
    return multiplier
