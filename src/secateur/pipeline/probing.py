"""What the loss is when units are masked: of many choices of units, probes, in one pass.

A batch holds windows of several probes, each with its own channels of the consumers' inputs at
zero: a channel that is zero is a column of the weight that is not there. What lies below a probe's
first masked layer is the whole model, which runs once for all. So probes go in the order of that
layer, and at any layer those that have begun are the first ones.

Experts, which share one tensor and are no modules, have their weights masked: then a batch holds
windows of one probe alone.

Of several ranks each takes its part of the probes, and all windows of these: windows that only ask
are few, and may be fewer than ranks.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..checkpoint import Kept, digest
from ..device_memory import sent
from ..ranks import this
from ..stats import LayerStep, Walk
from ..stats.collect import find
from ..stats.loss import each_loss
from ..stats.stream import hidden_of
from ..stats.substitute import substituted
from ..structure import Axis, Member

# Windows of so many tokens go through a layer at once.
_TOKENS = 2**11

Masks = Mapping[Axis, Bool[Tensor, "probe _"]]


def masked_losses(walk: Walk, masks: Masks) -> Float[Tensor, " probe"]:
    """Mean loss on the tokens of `walk` with the units of each probe masked, fp64."""
    layers = len(walk.source)
    if not any(len(mask) for mask in masks.values()):
        return torch.zeros(0, dtype=torch.float64)
    first = _first_masked(masks, layers)
    order = first.argsort(stable=True)
    ordered = {axis: mask[order] for axis, mask in masks.items()}
    # probe 0 is the whole model
    several = walk.like(times=1 + len(first), batch=_batch(walk, masks))
    units = {axis.name: mask.nonzero().tolist() for axis, mask in ordered.items()}
    kept = several.kept("probes", masks=digest(units))
    if not kept.whole:
        kept.end(value=_asked_by_ranks(walk, ordered, first[order], kept))
    losses = torch.tensor(kept.ended[1], dtype=torch.float64)
    found = torch.empty(len(first), dtype=torch.float64)
    found[order] = losses[1:].where(first[order] < layers, losses[0])
    return found / walk.tokens[:, 1:].numel()


def _asked_by_ranks(
    walk: Walk, masks: Masks, first: Int64[Tensor, " probe"], kept: Kept
) -> list[float]:
    """What `_asked` gives, of every rank's part of the probes; the whole model is the first's."""
    ranks = this()
    own = torch.arange(len(first))[ranks.index :: ranks.count]
    several = walk.like(times=1 + len(own), batch=_batch(walk, masks))
    masked = {axis: mask[own] for axis, mask in masks.items()}
    sums = _asked(several, len(walk.tokens), masked, first[own], kept)
    found = torch.zeros(1 + len(first), dtype=torch.float64)
    found[1 + own] = sums[1:]
    found[0] = sums[0] if ranks.first else 0.0
    return ranks.summed("probes", [found])[0].tolist()


def _first_masked(masks: Masks, layers: int) -> Int64[Tensor, " probe"]:
    """The first layer in which each probe has something masked; `layers` where nothing is."""
    masked = torch.stack([mask.any(dim=1) for mask in masks.values()])
    at = torch.tensor([axis.layer for axis in masks])[:, None].expand_as(masked)
    return at.where(masked, layers).min(dim=0).values


def _batch(walk: Walk, masks: Masks) -> int | None:
    """How many windows go at once; None: as many as a probe has."""
    modules = all(member.linear for axis in masks for member in axis.consumers)
    return max(_TOKENS // walk.tokens.shape[1], 1) if modules else None


def _asked(
    walk: Walk, count: int, masks: Masks, first: Int64[Tensor, " probe"], kept: Kept
) -> Float[Tensor, " one_and_probe"]:
    """The pass: the summed loss of the whole model and of every probe, `count` windows each."""
    states = walk.embed(kept)
    for step in walk.layers(kept, {"hidden": states}, stage="probes"):
        # a rank may have no probe
        here = {a: mask for a, mask in masks.items() if a.layer == step.index and len(mask)}
        for probe in (first == step.index).nonzero().flatten().tolist():
            states[(1 + probe) * count : (2 + probe) * count] = states[:count]
        begun = (1 + int((first <= step.index).sum())) * count
        for windows, inputs, (args, kwargs) in step.batches(states):
            if windows.start >= begun:
                break
            probes = torch.arange(windows.start, windows.stop) // count - 1
            with _masked(step, here, probes), torch.no_grad():
                states[windows] = hidden_of(step.module(inputs, *args, **kwargs))
    sums, of_probe = [], torch.arange(len(walk.tokens)) // count
    begun = (1 + int((first < len(walk.source)).sum())) * count
    with walk.source.back() as logits_of:
        for windows in walk.batches:
            if windows.start >= begun:
                break
            hidden, targets = states[windows][:, :-1], walk.tokens[windows][:, 1:]
            each = each_loss(logits_of, hidden.flatten(0, 1), targets.flatten()).double()
            sums.append(each.view(len(hidden), -1).sum(dim=1))
    of_windows = torch.cat(sums).cpu()
    losses = torch.zeros(1 + len(first), dtype=torch.float64)
    return losses.index_add_(0, of_probe[: len(of_windows)], of_windows)


@contextmanager
def _masked(step: LayerStep, masks: Masks, probes: Int64[Tensor, " window"]) -> Iterator[None]:
    """While entered, what reads a window's masked units has zeros for them; -1 masks nothing."""
    gone: dict[nn.Module, Tensor] = {}
    experts: dict[tuple[nn.Module, str], nn.Parameter | None] = {}
    for axis, mask in masks.items():
        own = mask[probes.clamp(min=0)] & (probes >= 0)[:, None]
        for member in axis.consumers if own.any() else ():
            module = find(step.module, member.module, axis.layer)
            if not member.linear:
                whole = module.get_parameter(member.parameter).detach()
                masked = member.masked(whole, own[0].nonzero().flatten())
                experts[module, member.parameter] = nn.Parameter(masked, requires_grad=False)
                continue
            channels = _channels(member, module, own)
            gone[module] = gone[module] | channels if module in gone else channels
    with ExitStack() as stack:
        stack.enter_context(substituted(experts))
        for module, channels in gone.items():
            stack.callback(module.register_forward_pre_hook(_zeroing(channels)).remove)
        yield


def _channels(
    member: Member, module: nn.Module, units: Bool[Tensor, "window unit"]
) -> Bool[Tensor, "window channel"]:
    """The channels of a consumer's input that belong to units."""
    weight = module.get_parameter("weight")
    channels = torch.zeros(len(units), weight.shape[member.dim], dtype=torch.bool)
    indices = member.blocks.indices(torch.arange(units.shape[1]))
    channels[:, indices.flatten()] = units.repeat_interleave(indices.shape[1], dim=1)
    return sent(channels, weight.device)


def _zeroing(channels: Bool[Tensor, "window channel"]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        by_window = args[0].reshape(len(channels), -1, channels.shape[1])
        return (by_window.masked_fill(channels[:, None], 0).view_as(args[0]), *args[1:])

    return hook
