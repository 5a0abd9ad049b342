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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint import ModuleWeights
from ...errors import SecateurError
from ...structure import Coupling, Role, Slice
from ...structure.size import ONE, ZERO, E, I, K, Size, r
from ..families import Family
from ..streamed import StreamedModel
from .fit import fitted
from .reads import Read, along, probe_sum, read_map, touched, watching, write_dims
from .tiny import Sizes, fill, linearise_norms, tiny_choices, tiny_model, tokens

_SEEDS = (0, 1)


# A place in a weight: parameter, dimensions, index along them (flattened).
Place = tuple[str, tuple[int, ...], int]


@dataclass(frozen=True)
class Row:
    """A row of units that one consumer (of each expert, where they share a tensor) reads.

    `channels` are the places that each channel of its input depends on or meets, `units` the
    connected components of that.
    """

    consumer: str
    expert: bool
    roles: Mapping[tuple[str, tuple[int, ...]], Role]
    channels: tuple[frozenset[Place], ...]
    units: tuple[frozenset[Place], ...]


@dataclass(frozen=True)
class Traced:
    """What was found in one layer, and the sizes of the two tiny models that showed it."""

    couplings: tuple[Coupling, ...]
    sizes: tuple[Sizes, Sizes]


def traced_couplings(config: Any, layer: int, family: Family) -> tuple[Coupling, ...]:
    """The couplings of layer `layer` of the model that `config` describes: see `traced`."""
    return traced(config, layer, family).couplings


def traced(config: Any, layer: int, family: Family) -> Traced:
    """Find the couplings of layer `layer` of the model that `config` describes.

    `family` says where the layers are. Needs no weights: only small models come about.

    Raises:
        SecateurError: what was found makes no layout; the message says where it broke.
    """
    failures: list[SecateurError] = []
    for sizes in tiny_choices(config):
        try:
            return _attempt(config, layer, family, sizes)
        except SecateurError as error:
            failures.append(error)
        except Exception as error:  # the family's own code runs: anything may come out of it
            reason = " ".join(str(error).split())[:200]
            failures.append(
                SecateurError(
                    f"The coupled structures of {config.model_type!r} cannot be traced: its code"
                    f" does not run on a small model ({type(error).__name__}: {reason}).\n"
                    "This family needs a declared layout."
                )
            )
    raise failures[0]


def _attempt(config: Any, layer: int, family: Family, sizes: tuple[Sizes, Sizes]) -> Traced:
    found = [_rows(config, layer, family, choice) for choice in sizes]
    if not found[0]:
        raise SecateurError(
            f"No coupled structure was found in layer {layer} of {config.model_type!r}: nothing"
            " that its weights write is read by another weight of the same block only."
        )
    couplings: list[Coupling] = []
    for rows in zip(*found, strict=True):
        module = rows[0].consumer.rpartition(".")[0].rpartition(".")[0]
        taken = any(coupling.name == "mlp" for coupling in couplings)
        couplings += _couplings(config, rows, sizes, module.replace(".", "_") if taken else "mlp")
        if rows[0].expert:
            couplings.append(_whole_experts(config, layer, family, sizes, rows[0].consumer))
    return Traced(tuple(couplings), sizes)


def _whole_experts(
    config: Any, layer: int, family: Family, sizes: Sequence[Sizes], consumer: str
) -> Coupling:
    """Experts as units: whatever has one row an expert, the router's included."""
    models = [tiny_model(config, choice, 0) for choice in sizes]
    layers: list[Any] = [list(model.get_submodule(family.layers))[layer] for model in models]
    shapes = [{name: p.shape for name, p in module.named_parameters()} for module in layers]
    slices = []
    for name in shapes[0]:
        if all(some[name][0] == choice.E for some, choice in zip(shapes, sizes, strict=True)):
            module, _, parameter = name.rpartition(".")
            role: Role = "consumer" if name == consumer else "producer"
            slices.append(Slice(module, parameter, (0,), role, ZERO, ONE, ONE))
    return Coupling("whole_experts", "mlp", "expert", "E", E, tuple(slices))


def _rows(config: Any, layer: int, family: Family, sizes: Sizes) -> list[Row]:
    """The rows of units in one tiny model: with every seed, the coarser of what it shows."""
    model = tiny_model(config, sizes, _SEEDS[0])
    module: nn.Module = list(model.get_submodule(family.layers))[layer]
    norms = set(linearise_norms(module))
    rows: dict[str, Row] = {}
    for seed in _SEEDS:
        fill(model, seed)
        for row in _traced(model, family, layer, norms, sizes, seed):
            known = rows.setdefault(row.consumer, row)
            rows[row.consumer] = row if len(row.units) < len(known.units) else known
    return list(rows.values())


def _traced(
    model: Any, family: Family, layer: int, norms: set[str], sizes: Sizes, seed: int
) -> list[Row]:
    module: Any = list(model.get_submodule(family.layers))[layer]
    hidden, call = _call(model, family, layer, seed)
    parameters = dict(module.named_parameters())
    residual = _residual_reads(module, hidden, call)
    with watching(module, residual) as watcher:
        module(hidden, *call[0], **call[1])
    consumers: dict[str, list[tuple[Read, list[Tensor]]]] = {}
    for number, read in enumerate(watcher.reads):
        inside = read.weight.rpartition(".")[0] in norms
        if number in residual or inside or read.width != sizes.D:
            continue
        met = read_map(read, parameters[read.weight])
        if met is not None:
            consumers.setdefault(read.weight, []).append((read, met))
    makers = _makers(watcher.reads, parameters, norms)
    return [_row(name, reads, parameters, makers) for name, reads in consumers.items()]


def _call(model: Any, family: Family, layer: int, seed: int) -> tuple[Tensor, Any]:
    """Hidden states [1, token, hidden] and the other arguments that the layer gets."""
    source = StreamedModel(model, family, ModuleWeights(model), torch.device("cpu"))
    with source.front() as front:
        hidden, calls = front(tokens(seed))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(hidden.shape, generator=generator, dtype=torch.float64)
    return noise.requires_grad_(), calls[layer]


def _residual_reads(module: nn.Module, hidden: Tensor, call: Any) -> frozenset[int]:
    """The numbers of the reads that see the layer's input when every linear is zero."""
    kept = {name: parameter.data.clone() for name, parameter in module.named_parameters()}
    norm_weights = {name for name in kept if "norm" in name.lower() or "ln" in name.lower()}
    try:
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1 or name not in norm_weights:
                parameter.data.zero_()
        with watching(module) as watcher:
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
            makers.setdefault(read.weight, write_dims(read, parameter))
    return makers


def _row(
    consumer: str,
    reads: list[tuple[Read, list[Tensor]]],
    parameters: Mapping[str, Tensor],
    makers: Mapping[str, tuple[int, ...]],
) -> Row:
    """The units of one consumer: the connected components of channels and indices."""
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
            if dims is None:
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
    return Row(consumer, expert, roles, tuple(channels), tuple(units))


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


def _couplings(
    config: Any, rows: Sequence[Row], sizes: Sequence[Sizes], name: str
) -> list[Coupling]:
    """The couplings that a row of units in each of the tiny models stands for."""
    counts = [len(row.units) for row in rows]
    units = [row.units for row in rows]
    values = [choice.values for choice in sizes]
    alone = all(len(row.units) == len(row.channels) for row in rows)
    if alone:
        # Every channel is a unit: an MLP's, whether the config says how many or the code.
        experts = [v["E"] if rows[0].expert else 1 for v in values]
        values = [{"E": n, "I": count // n} for count, n in zip(counts, experts, strict=True)]
    if alone and rows[0].expert:
        slices = _slices(rows, units, values, [v["I"] for v in values], I)
        return [Coupling("experts", "mlp", "expert_channel", "I", E * I, slices, groups=E)]
    if alone:
        return [Coupling(name, "mlp", "channel", "I", I, _slices(rows, units, values))]
    if not rows[0].expert and counts == [v["K"] for v in values]:
        values = [{name: v[name] for name in ("K", "r", "d")} for v in values]
        slices = _slices(rows, units, values)
        heads = _query_heads(rows, values)
        return [
            Coupling("attention", "attention", "kv_group", "K", K, slices, per_unit=r),
            *([] if heads is None else [heads]),
        ]
    sizes_of = "; ".join(
        f"{count} units where there are {v['K']} KV heads, {v['K'] * v['r']} query heads and"
        f" {v['I']} channels"
        for count, v in zip(counts, values, strict=True)
    )
    raise SecateurError(
        f"The coupled structures of {config.model_type!r} are ambiguous: {rows[0].consumer} reads"
        f" {sizes_of}.\nExpected one unit a KV head or a channel; this family needs a declared"
        " layout."
    )


def _query_heads(rows: Sequence[Row], values: Sequence[Mapping[str, int]]) -> Coupling | None:
    """Query heads inside KV groups: what the channels of one head touch, all and alone."""
    if all(v["r"] == 1 for v in values):
        return None
    heads: list[list[frozenset[Place]]] = []
    for row, v in zip(rows, values, strict=True):
        touching: dict[Place, set[int]] = {}
        for channel, places in enumerate(row.channels):
            for place in places:
                touching.setdefault(place, set()).add(channel)
        width = len(row.channels) // (v["K"] * v["r"])
        blocks = [
            frozenset(range(start, start + width)) for start in range(0, len(row.channels), width)
        ]
        reader = {key for key, role in row.roles.items() if role == "consumer"}
        heads.append(
            [
                frozenset(
                    place
                    for place, channels in touching.items()
                    if channels == block or (place[:2] in reader and channels <= block)
                )
                for block in blocks
            ]
        )
    slices = _slices(rows, heads, values, [v["r"] for v in values], r)
    return Coupling("query_heads", "attention", "query_head", "r", K * r, slices, groups=K)


def _slices(
    rows: Sequence[Row],
    units: Sequence[Sequence[frozenset[Place]]],
    values: Sequence[Mapping[str, int]],
    groups: Sequence[int] | None = None,
    group: Size | None = None,
) -> tuple[Slice, ...]:
    """Index maps with letters for what the units own of each tensor, in both tiny models."""
    slices: list[Slice] = []
    for (parameter, dims), role in rows[0].roles.items():
        maps = [
            _index_maps([sorted(i for *key, i in unit if tuple(key) == (parameter, dims))
                         for unit in some], size)
            for some, size in zip(units, groups or [0] * len(units), strict=True)
        ]  # fmt: skip
        for number in range(len(maps[0])):
            numbers = [found[number] for found in maps]
            offset, stride, width, jump = (
                _polynomial([n[part] for n in numbers], values, parameter) for part in range(4)
            )
            module, _, name = parameter.rpartition(".")
            grouped = group if group is not None and any(n[3] for n in numbers) else None
            slices.append(Slice(module, name, dims, role, offset, stride, width, grouped, jump))
    return tuple(slices)


def _index_maps(units: Sequence[list[int]], group: int) -> list[tuple[int, int, int, int]]:
    """(offset, stride, width, jump) of each run of indices that every unit has."""
    if not any(units):
        return []
    runs = [_runs(unit) for unit in units]
    maps = []
    for number in range(len(runs[0])):
        starts = [unit[number][0] if number < len(unit) else -1 for unit in runs]
        size = group or len(starts)
        stride = starts[1] - starts[0] if size > 1 else 0
        jump = starts[size] - starts[0] if size < len(starts) else 0
        width = runs[0][number][1]
        for unit, start in enumerate(starts):
            regular = starts[0] + unit // size * jump + unit % size * stride
            if start != regular or runs[unit][number][1] != width:
                raise SecateurError(
                    "The coupled structures are irregular: unit"
                    f" {unit} owns indices from {start} on, expected {regular}."
                )
        maps.append((starts[0], stride, width, jump))
    return maps


def _runs(indices: list[int]) -> list[tuple[int, int]]:
    """Contiguous runs as (start, length)."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and index == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs


def _polynomial(
    numbers: Sequence[int], values: Sequence[Mapping[str, int]], parameter: str
) -> Size:
    size = fitted(numbers, values)
    if size is None:
        raise SecateurError(
            f"The coupled structures are ambiguous: {parameter} has blocks of {numbers[0]} and"
            f" {numbers[1]} in two small models, which no simple layout explains."
        )
    return size
