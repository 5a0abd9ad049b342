"""Coupled structures without rules: the non-zero pattern of a Jacobian through one tiny layer.

    z = the activation that a consumer reads (the input of o_proj, down_proj, an expert's down)
    J = dz[channel] / dW[index]     for every parameter W of the layer

Gradients are stopped where the residual stream is read, so that whatever `z` depends on belongs to
the same block. Indices that touch a common channel go together; the connected components are the
units: 8 channels of `o_proj`, the rows of q, k and v that make them. This is done in two tiny
models of different sizes, and the numbers found become polynomials in the letters of a layout.

A read is of the residual stream if something of the layer's input is left in it when every linear
is zero. Norms are products with their weights, experts all get all tokens, activations are smooth
(see `tiny.py`), so that nothing hides a dependence or adds one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint import module_view
from ...errors import SecateurError
from ...structure import Coupling, Role, Slice
from ..families import Family
from ..streamed import StreamedModel
from .couplings import NoLayoutError, Place, Row, row_couplings
from .reads import Read, Watcher, along, probe_sum, read_map, touched, write_dims
from .sizes import Sizes, tiny_choices
from .tiny import does_not_run, fill, linearise_norms, tiny_model, tokens

_SEEDS = (0, 1)


@dataclass(frozen=True)
class Traced:
    """What was found in one layer, and the sizes of the two tiny models that showed it.

    `left` names modules of the layer that make no layout, and says why.
    """

    couplings: tuple[Coupling, ...]
    sizes: tuple[Sizes, Sizes]
    left: Mapping[str, str]

    @property
    def has_heads(self) -> bool:
        """Whether attention has units."""
        return any(coupling.kind == "attention" for coupling in self.couplings)


# So many choices of sizes that run are tried, where each leaves something whole.
_RUNS = 3


def traced(config: Any, layer: int, family: Family) -> Traced:
    """Find the couplings of layer `layer` of the model that `config` describes.

    `family` says where the layers are. Needs no weights: only small models come about. Of the
    sizes that run, those count that show heads and leave least, the likeliest before others.

    Raises:
        SecateurError: the family's code runs with no choice of sizes; the message is of the first.
    """
    failures: list[SecateurError] = []
    found: list[Traced] = []
    for sizes in tiny_choices(config):
        # what runs in fp64 need not run in fp32
        other = bool(found) and sizes[0].dtype != found[-1].sizes[0].dtype
        if found and (not found[-1].left or len(found) == _RUNS or other):
            break
        try:
            found.append(_attempt(config, layer, family, sizes))
        except SecateurError as error:
            failures.append(error)
        except Exception as error:  # the family's own code runs: anything may come out of it
            failures.append(does_not_run(config, error))
    if not found:
        raise failures[0]
    return min(found, key=lambda some: (not some.has_heads, len(some.left)))


def _attempt(config: Any, layer: int, family: Family, sizes: tuple[Sizes, Sizes]) -> Traced:
    one, other = (_rows(config, layer, family, choice) for choice in sizes)
    couplings: list[Coupling] = []
    left: dict[str, str] = {}
    experts = any(row.expert for row in one.values())
    for consumer, row in one.items():
        module = consumer.rpartition(".")[0].rpartition(".")[0]
        taken = any(coupling.name == "mlp" for coupling in couplings)
        deep = experts and module.count(".") > 0
        name = module.replace(".", "_") if taken or deep else "mlp"
        try:
            if consumer not in other:
                raise NoLayoutError("it is built differently with other sizes")
            couplings += row_couplings((row, other[consumer]), sizes, name)
        except NoLayoutError as reason:
            left[module or consumer.rpartition(".")[0]] = str(reason)
            continue
        if row.expert:
            couplings += _whole_experts(config, layer, family, sizes, consumer)
    return Traced(tuple(couplings), sizes, left)


def _whole_experts(
    config: Any, layer: int, family: Family, sizes: Sequence[Sizes], consumer: str
) -> list[Coupling]:
    """Experts as units: whatever has one row an expert, the router's included.

    None are, if the router holds a buffer with a value for each: a buffer is no weight to be cut.
    """
    models = [tiny_model(config, choice, 0) for choice in sizes]
    layers: list[Any] = [list(model.get_submodule(family.layers))[layer] for model in models]
    shapes = [{name: p.shape for name, p in module.named_parameters()} for module in layers]
    buffers = [dict(module.named_buffers()).values() for module in layers]
    if all(
        any(b.dim() and b.shape[0] == choice.E for b in some)
        for some, choice in zip(buffers, sizes, strict=True)
    ):
        return []
    slices = []
    for name in shapes[0]:
        if all(some[name][0] == choice.E for some, choice in zip(shapes, sizes, strict=True)):
            module, _, parameter = name.rpartition(".")
            role: Role = "consumer" if name == consumer else "producer"
            slices.append(Slice(module, parameter, (0,), role))
    return [Coupling("whole_experts", "expert", tuple(slices))]


def _rows(config: Any, layer: int, family: Family, sizes: Sizes) -> dict[str, Row]:
    """The rows of units in one tiny model, by consumer: of all seeds, the coarsest."""
    model = tiny_model(config, sizes, _SEEDS[0])
    module: nn.Module = list(model.get_submodule(family.layers))[layer]
    norms = set(linearise_norms(module))
    rows: dict[str, Row] = {}
    for seed in _SEEDS:
        fill(model, seed, sizes.dtype)
        for row in _traced(model, family, layer, norms, sizes, seed):
            known = rows.setdefault(row.consumer, row)
            rows[row.consumer] = row if len(row.units) < len(known.units) else known
    return rows


def _traced(
    model: Any, family: Family, layer: int, norms: set[str], sizes: Sizes, seed: int
) -> list[Row]:
    module: Any = list(model.get_submodule(family.layers))[layer]
    hidden, call = _call(model, family, layer, seed)
    parameters = dict(module.named_parameters())
    residual = _residual_reads(module, hidden, call)
    with Watcher(module, residual) as watcher:
        module(hidden, *call[0], **call[1])
    consumers: dict[str, list[tuple[Read, list[Tensor]]]] = {}
    for number, read in enumerate(watcher.reads):
        inside = read.weight.rpartition(".")[0] in norms
        if number in residual or inside or read.width != sizes.D:
            continue
        met = _met(read, parameters[read.weight])
        if met is not None:
            consumers.setdefault(read.weight, []).append((read, met))
    makers = _makers(watcher.reads, parameters, norms)
    entries = [watcher.reads[number].inputs for number in sorted(residual)]
    rows = []
    for name, reads in consumers.items():
        mixes = len(reads) == 1 and _mixes_tokens(reads[0][0].inputs, entries)
        row = _row(name, reads, parameters, makers, mixes=mixes)
        if len(row.units) == 1 and sizes.K > 1:
            row = _row(name, reads, parameters, makers, mixes=mixes, common=False)
        rows.append(row)
    return rows


def _mixes_tokens(inputs: Tensor, entries: Sequence[Tensor]) -> bool:
    """Whether the last token's activation depends on what several tokens bring into the block."""
    if inputs.dim() < 2:
        return False
    flat = inputs.reshape(-1, inputs.shape[-1]) if inputs.dim() == 2 else inputs[0]
    entries = [entry for entry in entries if entry.requires_grad and entry.dim() > 1]
    if not entries:
        return False
    gradients = torch.autograd.grad(
        probe_sum(flat[-1]), entries, retain_graph=True, allow_unused=True
    )
    return any(
        gradient is not None
        and int((gradient.reshape(-1, gradient.shape[-1]) != 0).any(dim=-1).sum()) > 1
        for gradient in gradients
    )


def _met(read: Read, parameter: Tensor) -> list[Tensor] | None:
    """As `read_map`; None too where the operation takes no inputs but its own."""
    try:
        return read_map(read, parameter)
    except (RuntimeError, KeyError, IndexError):
        return None


def _call(model: Any, family: Family, layer: int, seed: int) -> tuple[Tensor, Any]:
    """Hidden states [1, token, hidden] and the other arguments that the layer gets."""
    source = StreamedModel(model, family, module_view(model), torch.device("cpu"))
    with source.front() as front:
        hidden, calls = front(tokens(seed))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(hidden.shape, generator=generator, dtype=torch.float64).to(model.dtype)
    return noise.requires_grad_(), calls[layer]


def _residual_reads(module: nn.Module, hidden: Tensor, call: Any) -> frozenset[int]:
    """The numbers of the reads that see the layer's input when every linear is zero."""
    kept = {name: parameter.data.clone() for name, parameter in module.named_parameters()}
    norm_weights = {name for name in kept if "norm" in name.lower() or "ln" in name.lower()}
    try:
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1 or name not in norm_weights:
                parameter.data.zero_()
        with Watcher(module) as watcher:
            module(hidden, *call[0], **call[1])
        return frozenset(
            number
            for number, read in enumerate(watcher.reads)
            if touched(probe_sum(read.inputs), {"hidden": hidden})
        )
    finally:
        for name, parameter in module.named_parameters():
            parameter.data.copy_(kept[name])


def _makers(
    reads: Sequence[Read], parameters: Mapping[str, Tensor], norms: set[str]
) -> dict[str, tuple[int, ...]]:
    """By parameter, the dimensions that its outputs lie along (empty: to be seen)."""
    makers: dict[str, tuple[int, ...]] = {}
    for read in reads:
        parameter = parameters[read.weight]
        if parameter.dim() > 1 and read.weight.rpartition(".")[0] not in norms:
            with suppress(RuntimeError, KeyError, IndexError):
                makers.setdefault(read.weight, write_dims(read, parameter))
    return makers


def _row(
    consumer: str,
    reads: list[tuple[Read, list[Tensor]]],
    parameters: Mapping[str, Tensor],
    makers: Mapping[str, tuple[int, ...]],
    *,
    mixes: bool,
    common: bool = True,
) -> Row:
    """The units of one consumer: the connected components of channels and indices.

    Without `common` weights all of which every channel depends on (a latent that all heads read)
    are no unit's.
    """
    expert = len(reads) > 1
    roles: dict[tuple[str, tuple[int, ...]], Role] = {}
    channels: list[frozenset[Place]] = []
    units: list[frozenset[Place]] = []
    for read, met in reads:
        depends = _channels(read, parameters)
        places: list[set[Place]] = [set() for _ in met]
        for name in parameters:
            masks = {c: found[name] for c, found in enumerate(depends) if name in found}
            if not masks:
                continue
            dims = _producer_dims(list(masks.values()), makers.get(name), expert)
            if dims is None or not (common or _distinguishes(masks.values())):
                continue
            roles[name, dims] = "producer"
            for channel, mask in masks.items():
                places[channel] |= {(name, dims, i) for i in _flat(mask, dims)}
        dims = _structured(met, expert)
        roles[consumer, dims] = "consumer"
        for channel, mask in enumerate(met):
            places[channel] |= {(consumer, dims, index) for index in _flat(mask, dims)}
        channels += [frozenset(found) for found in places]
        units += _components(places)
    lengths = {
        (name, dims): math.prod(parameters[name].shape[dim] for dim in dims) for name, dims in roles
    }
    return Row(consumer, expert, roles, lengths, tuple(channels), tuple(units), mixes)


def _distinguishes(masks: Iterable[Tensor]) -> bool:
    return not all(bool(mask.all()) for mask in masks)


def _channels(read: Read, parameters: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """For each channel of the input, which parameters it depends on, and where."""
    return [
        touched(probe_sum(read.inputs[..., channel]), parameters)
        for channel in range(read.inputs.shape[-1])
    ]


def _producer_dims(
    masks: list[Tensor], written: tuple[int, ...] | None, expert: bool
) -> tuple[int, ...] | None:
    """Along which dimensions a parameter belongs to units; None if all units share all of it."""
    if masks[0].dim() == 1:
        whole = all(bool(mask.all()) for mask in masks)
        return None if whole and len(masks) > 1 else (0,)
    if written:
        fixed = _fixed(masks) if expert else ()
        return (*fixed, *(dim for dim in written if dim not in fixed))
    # A norm's weight: no output channel of its own, but one index a head along some dimension.
    return _structured(masks, expert) or None


def _structured(masks: list[Tensor], expert: bool) -> tuple[int, ...]:
    """The dimensions along which masks differ (after the one that is an expert's)."""
    fixed = _fixed(masks) if expert else ()
    rest = [dim for dim in range(masks[0].dim()) if dim not in fixed]
    differ = [dim for dim in rest if len({tuple(along(m, dim).tolist()) for m in masks}) > 1]
    return (*fixed, *differ)


def _fixed(masks: list[Tensor]) -> tuple[int, ...]:
    """The dimensions of which all masks touch the same single index of several."""
    dims = []
    for dim in range(masks[0].dim()):
        used = torch.stack([along(mask, dim) for mask in masks]).any(0)
        if int(used.sum()) == 1 and len(used) > 1:
            dims.append(dim)
    return tuple(dims)


def _flat(mask: Tensor, dims: tuple[int, ...]) -> list[int]:
    """The indices that a mask touches along `dims`, flattened in that order."""
    others = [dim for dim in range(mask.dim()) if dim not in dims]
    reduced = mask.amax(dim=others) if others else mask
    order = sorted(dims)
    reduced = reduced.permute([order.index(dim) for dim in dims])
    return [int(i) for i in reduced.flatten().nonzero().flatten()]


def _components(channels: Sequence[set[Place]]) -> list[frozenset[Place]]:
    """Channels that share a place belong to one unit; units in the order of their channels."""
    units: list[set[Place]] = []
    for places in channels:
        joined = [unit for unit in units if unit & places]
        if not joined:
            units.append(set(places))
            continue
        joined[0].update(places, *joined[1:])
        units = [unit for unit in units if not any(unit is other for other in joined[1:])]
    return [frozenset(unit) for unit in units]
