"""Gates: one multiplier a unit, and how far the model is from the dense one by them.

    D(g) = 1/T sum_t KL(dense_t || gated_t)

A gate of 1 leaves a unit what it is, and one of 0 takes it away. Between them the consumer reads

    x'_c = g_c x_c                 dD/dg_c = sum_t x_tc dD/dx'_tc       a multiplier, or
    W'(g), b'(g) for W, b          `surgery.gated`                      what a fit leaves of it

The second where statistics of the dense model are given: then D is that of a model whose consumers
were fitted at once, as candidates are (`candidates`). Experts share one tensor and are no modules:
theirs is multiplied.

One walk up with the inputs of every layer kept (hidden states alone), and one down: each layer runs
again with gradients by what its consumers read. So D and its gradient by all gates are about three
forwards, and memory is that of one layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..device_memory import sent
from ..stats import Activations, LayerStep, Statistics, Walk
from ..stats.blocks import in_cache
from ..stats.collect import find
from ..stats.finite import Finite
from ..stats.loss import divergence_gradient
from ..stats.stream import hidden_of
from ..stats.substitute import substituted
from ..structure import Axis, Member
from ..surgery.gated import gated_fit
from ..surgery.one_shot import FITTED_BY

Gates = Mapping[Axis, Float[Tensor, " _"]]

# So many tokens go down a layer at once, however many windows a batch has.
_TOKENS = 2**13


def gated_divergence(
    walk: Walk, dense: Activations, gates: Gates, fitted_by: Statistics | None = None
) -> tuple[float, dict[Axis, Float[Tensor, " _"]]]:
    """KL(dense || gated), a mean over the tokens of `walk`, and its gradient by `gates`, fp32.

    `dense` are the dense model's last hidden states [window, token, hidden] of the same windows;
    consumers are fitted by the statistics `fitted_by` of it (`FITTED_BY`), if there are any.

    Raises:
        SecateurError: an activation or a gradient is not finite.
    """
    lowest = min(axis.layer for axis in gates)
    batch = min(walk.batch, max(_TOKENS // walk.tokens.shape[1], 1))
    # the limit holds for the inputs of all layers, the last output and its gradient
    own = walk.like(batch=batch, parts=len(walk.source) - lowest + 2)
    inputs = _ascended(own, gates, fitted_by, lowest)
    total, gradient = _start(own, dense, inputs.pop(len(walk.source)))
    found: dict[Axis, Tensor] = {}
    for step in own.layers(reverse=True, lowest=lowest, stage="gates"):
        with _gated(step, gates, fitted_by) as sums:
            for windows, states, (args, kwargs) in step.batches(inputs.pop(step.index)):
                leaf = states.detach().requires_grad_()
                with torch.enable_grad():
                    output = hidden_of(step.module(leaf, *args, **kwargs))
                output.backward(gradient[windows].to(output.device))
                del output
                assert leaf.grad is not None, "the residual stream goes through every layer"
                step.finite.see(f"the gradient of the input of layer {step.index}", leaf.grad)
                gradient[windows] = leaf.grad
        step.finite.check()
        merged = walk.ranks.summed(f"gates of layer {step.index}", list(sums.values()))
        found |= {a: own.cpu() / walk.tokens.numel() for a, own in zip(sums, merged, strict=True)}
    return total / walk.tokens.numel(), found


def _ascended(
    walk: Walk, gates: Gates, fitted_by: Statistics | None, lowest: int
) -> dict[int, Activations]:
    """The inputs of the layers from `lowest` on, and the output of the last (`len(source)`).

    Raises:
        SecateurError: an activation is not finite.
    """
    states = walk.embed()
    inputs: dict[int, Activations] = {}
    for step in walk.layers(stage="gates"):
        into = states
        if step.index >= lowest:
            inputs[step.index] = states
            count, length, width = states.tensor.shape
            into = walk.states((count, length, width), states.tensor.dtype)
        with _gated(step, gates, fitted_by):
            step.run(states, into=into)
        states = into
    return inputs | {len(walk.source): states}


def _start(walk: Walk, dense: Activations, last: Activations) -> tuple[float, Activations]:
    """The divergence summed over tokens; its gradient takes the place of the last hidden states.

    Of the sum, not of the mean, which would put small gradients below what half precision holds.
    """
    finite, device = Finite(walk.ranks), walk.source.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    with walk.source.back() as logits_of:
        for windows in walk.batches:
            wanted, states = dense[windows].to(device), last[windows].to(device)
            flat = wanted.flatten(0, 1), states.flatten(0, 1)
            summed, gradient = divergence_gradient(logits_of, *flat, finite)
            total += summed.double()
            last[windows] = gradient.view_as(states)
    finite.check()
    (total,) = walk.ranks.summed("divergence", [total])
    return total.item(), last


@dataclass(frozen=True)
class _Reader:
    """A linear that reads units of an axis: the channels that they own, as they are multiplied.

    What passes it says which way the gates should go, and is added to `sums`.
    """

    axis: Axis
    member: Member
    indices: Int64[Tensor, "unit width"]
    factor: Float[Tensor, " channel"]
    sums: Float[Tensor, " unit"]

    @classmethod
    def of(cls, axis: Axis, member: Member, module: nn.Module, gate: Tensor, sums: Tensor) -> Any:
        """Every channel is multiplied by its unit's gate, those of no unit by one."""
        factor = torch.ones(module.get_parameter("weight").shape[member.dim])
        indices = member.blocks.indices(torch.arange(len(gate)))
        factor[indices.flatten()] = gate.float().cpu().repeat_interleave(indices.shape[1])
        return cls(axis, member, sent(indices, sums.device), sent(factor, sums.device), sums)


@contextmanager
def _gated(
    step: LayerStep, gates: Gates, fitted_by: Statistics | None
) -> Iterator[dict[Axis, Tensor]]:
    """While entered, the layer's consumers read their units through the gates.

    Of all that goes back in that time, the gradients by the gates are in what is given, afterwards.
    """
    here = {axis: gate for axis, gate in gates.items() if axis.layer == step.index}
    device = step.walk.source.device
    sums = {axis: torch.zeros(len(gate), device=device) for axis, gate in here.items()}
    readers: dict[nn.Module, list[_Reader]] = {}
    with ExitStack() as stack:
        for axis, gate in here.items():
            for member in axis.consumers:
                module = find(step.module, member.module, step.index)
                if member.linear:
                    reader = _Reader.of(axis, member, module, gate, sums[axis])
                    readers.setdefault(module, []).append(reader)
                else:
                    stack.enter_context(_scaled_experts(module, member, gate, sums[axis]))
        for module, own in readers.items():
            if fitted_by is None:
                stack.callback(module.register_forward_pre_hook(_multiplying(own)).remove)
            else:
                stack.enter_context(_refitted(module, own, fitted_by))
        yield sums


def _multiplying(readers: Sequence[_Reader]) -> Callable[..., Any]:
    """A hook that multiplies a linear's input, and takes up the gradient of what it reads."""
    factor = _product([reader.factor for reader in readers])

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
        _credit(readers, by_channel)

    return hook


@contextmanager
def _refitted(
    module: nn.Module, readers: Sequence[_Reader], fitted_by: Statistics
) -> Iterator[None]:
    """While entered, a linear is what a fit by gates makes of it; then its gradients are taken."""
    first = readers[0]
    dim, device = first.member.dim, first.sums.device
    dense, bias = module.get_parameter("weight").detach(), module._parameters.get("bias")
    # not every device has fp64
    where = device if device.type == "cuda" else torch.device("cpu")
    seen: Any = {name: fitted_by[first.axis.name][name].to(where) for name in FITTED_BY}
    factor = _product([reader.factor for reader in readers]).to(where)
    turned = dense.movedim(dim, 1).to(where)
    fit = gated_fit(turned, factor, where=first.member.module, **seen)
    weight = nn.Parameter(fit.weight.movedim(1, dim).contiguous().to(dense))
    own = fit.added if bias is None else fit.added + bias.detach().to(fit.added)
    added = nn.Parameter(own.to(dense))
    with substituted({(module, "weight"): weight, (module, "bias"): added}):
        yield
    if weight.grad is not None and added.grad is not None:
        gradients = weight.grad.movedim(dim, 1).to(where), added.grad.to(where)
        _credit(readers, fit.gradient(*gradients).to(device))


def _credit(readers: Sequence[_Reader], by_channel: Float[Tensor, " channel"]) -> None:
    """Add a gradient by what channels are multiplied by to that of every gate."""
    for at, reader in enumerate(readers):
        # units of several axes (heads, and groups of them) may own the same channels
        others = [other.factor for index, other in enumerate(readers) if index != at]
        own = by_channel * _product(others) if others else by_channel
        reader.sums.add_(own[reader.indices].sum(dim=1))


def _product(factors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(factors)).prod(dim=0)


@contextmanager
def _scaled_experts(
    module: nn.Module, member: Member, gate: Tensor, sums: Float[Tensor, " unit"]
) -> Iterator[None]:
    """While entered, the slices of a stack of experts are multiplied by their units' gates."""
    whole = module.get_parameter(member.parameter).detach()
    scaled = nn.Parameter(member.scaled(whole, sent(gate, whole.device)))
    with substituted({(module, member.parameter): scaled}):
        yield
    if scaled.grad is not None:
        product = member.view(scaled.grad.float() * whole.float(), len(gate))
        sums.add_(product.sum(dim=(1, 2)))
