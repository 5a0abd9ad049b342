"""Gates: one multiplier a unit, and how far the model is from the dense one by them.

    x_u -> g_u x_u  in the consumer's input       D(g) = 1/T sum_t KL(dense_t || gated_t)
    dD/dg_u = 1/T sum_t sum_(channels c of u) x_tc dT D/dx'_tc       x' = g x

g = 1 is the dense model, and a unit whose gate is 0 is not there. One walk up with the inputs of
every layer kept (hidden states alone), and one down: each layer runs again with gradients by what
its consumers read, and no weight has one. So D and its gradient by all gates are about three
forwards, and memory is that of one layer.

Experts share one tensor and are no modules: their weights are multiplied, which is the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..device_memory import sent
from ..structure import Axis, Member
from .activations import Activations
from .blocks import in_cache
from .collect import find
from .finite import Finite
from .loss import divergence_gradient
from .stream import LayerStep, Walk, hidden_of
from .substitute import substituted

Gates = Mapping[Axis, Float[Tensor, " unit"]]

# So many tokens go down a layer at once, however many windows a batch has.
_TOKENS = 2**13


def gated_divergence(
    walk: Walk, dense: Activations, gates: Gates
) -> tuple[float, dict[Axis, Float[Tensor, " unit"]]]:
    """KL(dense || gated), a mean over the tokens of `walk`, and its gradient by `gates`, fp32.

    `dense` are the dense model's last hidden states [window, token, hidden] of the same windows.

    Raises:
        SecateurError: an activation or a gradient is not finite.
    """
    lowest = min(axis.layer for axis in gates)
    batch = min(walk.batches[0].stop, max(_TOKENS // walk.tokens.shape[1], 1))
    # the limit holds for the inputs of all layers, the last output and its gradient
    own = walk.like(batch=batch, parts=len(walk.source) - lowest + 2)
    inputs = _ascended(own, gates, lowest)
    total, gradient = _start(own, dense, inputs.pop(len(walk.source)))
    found: dict[Axis, Tensor] = {}
    for step in own.layers(reverse=True, lowest=lowest, stage="gates"):
        with _gated(step, gates) as sums:
            for windows, states, (args, kwargs) in step.batches(inputs[step.index]):
                leaf = states.detach().requires_grad_()
                with torch.enable_grad():
                    output = hidden_of(step.module(leaf, *args, **kwargs))
                output.backward(gradient[windows].to(output.device))
                del output
                assert leaf.grad is not None, "the residual stream goes through every layer"
                step.finite.see(f"the gradient of the input of layer {step.index}", leaf.grad)
                gradient[windows] = leaf.grad
        step.finite.check()
        del inputs[step.index]
        found |= {axis: own_sums.cpu() / walk.tokens.numel() for axis, own_sums in sums.items()}
    return total / walk.tokens.numel(), found


def _ascended(walk: Walk, gates: Gates, lowest: int) -> dict[int, Activations]:
    """The inputs of the gated layers from `lowest` on, and the output of the last (`len(source)`).

    Raises:
        SecateurError: an activation is not finite.
    """
    states = walk.embed()
    inputs: dict[int, Activations] = {}
    for step in walk.layers(stage="gates"):
        into = states
        if step.index >= lowest:
            inputs[step.index] = states
            shape = states.tensor.shape
            into = walk.states((shape[0], shape[1], shape[2]), states.tensor.dtype)
        with _gated(step, gates):
            step.run(states, into=into)
        states = into
    return inputs | {len(walk.source): states}


def _start(walk: Walk, dense: Activations, last: Activations) -> tuple[float, Activations]:
    """The divergence summed over tokens, and its gradient by the last hidden states in place.

    Of the sum, not of the mean, which would put small gradients below what half precision holds.
    """
    finite, device = Finite(), walk.source.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    with walk.source.back() as logits_of:
        for windows in walk.batches:
            wanted, states = dense[windows].to(device), last[windows].to(device)
            flat = wanted.flatten(0, 1), states.flatten(0, 1)
            summed, gradient = divergence_gradient(logits_of, *flat, finite)
            total += summed.double()
            last[windows] = gradient.view_as(states)
    finite.check()
    return total.item(), last


@contextmanager
def _gated(step: LayerStep, gates: Gates) -> Iterator[dict[Axis, Tensor]]:
    """While entered, the layer's consumers read their units times the gates.

    The sums that are given grow with every backward: gradients by the gates, of its tokens.
    """
    here = {axis: gate for axis, gate in gates.items() if axis.layer == step.index}
    device = step.walk.source.device
    sums = {axis: torch.zeros(len(gate), device=device) for axis, gate in here.items()}
    readers: dict[nn.Module, list[_Reader]] = {}
    with ExitStack() as stack:
        for axis, gate in here.items():
            for member in axis.consumers:
                module = find(step.module, member.module, step.index)
                if not member.linear:
                    stack.enter_context(_scaled_experts(module, member, gate, sums[axis]))
                    continue
                reader = _Reader.of(module, member, gate, sums[axis])
                readers.setdefault(module, []).append(reader)
        for module, own in readers.items():
            stack.callback(module.register_forward_pre_hook(_multiplying(own)).remove)
        yield sums


@dataclass(frozen=True)
class _Reader:
    """The channels of a linear that the units of an axis own, their gates, and their sums."""

    indices: Int64[Tensor, "unit width"]
    factor: Float[Tensor, " channel"]
    sums: Float[Tensor, " unit"]

    @classmethod
    def of(cls, module: nn.Module, member: Member, gate: Tensor, sums: Tensor) -> "_Reader":
        """What is multiplied: every channel by its unit's gate, others by one."""
        factor = torch.ones(module.get_parameter("weight").shape[member.dim])
        indices = member.blocks.indices(torch.arange(len(gate)))
        factor[indices.flatten()] = gate.float().cpu().repeat_interleave(indices.shape[1])
        return cls(sent(indices, sums.device), sent(factor, sums.device), sums)


def _multiplying(readers: Sequence[_Reader]) -> Callable[..., Any]:
    """A hook that multiplies a linear's input, and takes up the gradient of what it reads."""
    # units of several axes (heads, and groups of them) may own the same channels
    factors = [reader.factor for reader in readers]
    others = [_product([*factors[:i], *factors[i + 1 :]]) for i in range(len(factors))]
    factor = _product(factors)

    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        given = args[0]
        gated = given * factor.to(given.dtype)
        if gated.requires_grad:
            plain = given.detach()
            gated.register_hook(lambda gradient: take(plain, gradient))
        return (gated, *args[1:])

    def take(given: Tensor, gradient: Tensor) -> None:
        by_channel = torch.zeros(given.shape[-1], device=given.device)
        pairs = zip(in_cache(given.flatten(0, -2)), in_cache(gradient.flatten(0, -2)), strict=True)
        for some, with_them in pairs:
            by_channel += (some.float() * with_them.float()).sum(dim=0)
        for reader, rest in zip(readers, others, strict=True):
            reader.sums.add_((by_channel * rest)[reader.indices].sum(dim=1))

    return hook


def _product(factors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(factors)).prod(dim=0) if factors else torch.ones(())


@contextmanager
def _scaled_experts(
    module: nn.Module, member: Member, gate: Tensor, sums: Float[Tensor, " unit"]
) -> Iterator[None]:
    """While entered, the slices of a stack of experts are multiplied by their units' gates."""
    whole = module.get_parameter(member.parameter).detach()
    scaled = nn.Parameter(member.scaled(whole, sent(gate, whole.device)), requires_grad=True)

    def take(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None, "the hook runs when there is a gradient"
        product = member.view(gradient.float() * whole.float(), len(gate))
        sums.add_(product.sum(dim=(1, 2)))

    scaled.register_post_accumulate_grad_hook(take)
    with substituted({(module, member.parameter): scaled}):
        yield
