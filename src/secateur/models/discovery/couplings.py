"""From rows of units in two tiny models to couplings: index maps with letters for sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...structure import Coupling, Role, Slice
from .polynomials import polynomial_of
from .sizes import Sizes

# A place in a weight: parameter, dimensions, index along them (flattened).
Place = tuple[str, tuple[int, ...], int]


@dataclass(frozen=True)
class Row:
    """A row of units that one consumer (of each expert, where they share a tensor) reads.

    `channels` are the places that each channel of its input depends on or meets, `units` the
    connected components of that, `lengths` how many indices there are along each role's dimensions.
    It `mixes` tokens if a token's activation depends on what others bring into the block.
    """

    consumer: str
    expert: bool
    roles: Mapping[tuple[str, tuple[int, ...]], Role]
    lengths: Mapping[tuple[str, tuple[int, ...]], int]
    channels: tuple[frozenset[Place], ...]
    units: tuple[frozenset[Place], ...]
    mixes: bool = False


class NoLayoutError(Exception):
    """What was found makes no layout; the message says why, in the middle of a sentence."""


def row_couplings(rows: Sequence[Row], sizes: Sequence[Sizes], name: str) -> list[Coupling]:
    """The couplings that a row of units in each of the tiny models stands for.

    Raises:
        NoLayoutError: none; the units are no heads and no channels, or lie in no regular blocks.
    """
    counts = [len(row.units) for row in rows]
    units = [row.units for row in rows]
    values = [choice.values for choice in sizes]
    alone = all(len(row.units) == len(row.channels) for row in rows)
    if alone and any(row.mixes for row in rows):
        raise NoLayoutError("its channels carry a state from token to token, which a cache keeps")
    if alone:
        # Every channel is a unit: an MLP's, whether the config says how many or the code.
        experts = [v["E"] if rows[0].expert else 1 for v in values]
        values = [{"E": n, "I": count // n} for count, n in zip(counts, experts, strict=True)]
    if alone and rows[0].expert:
        slices = _slices(rows, units, values, [v["I"] for v in values])
        return [Coupling("experts", "expert_channel", slices)]
    if alone:
        return [Coupling(name, "channel", _slices(rows, units, values))]
    if not rows[0].expert and counts == [v["K"] for v in values]:
        values = [{name: v[name] for name in ("K", "r", "d")} for v in values]
        slices = _slices(rows, units, values)
        heads = _query_heads(rows, values)
        return [
            Coupling("attention", "kv_group", slices),
            *([] if heads is None else [heads]),
        ]
    if all(count == 1 for count in counts):
        raise NoLayoutError("all its channels depend on one another")
    raise NoLayoutError(
        f"its {len(rows[0].channels)} channels make {counts[0]} units where there are"
        f" {values[0]['K']} KV heads and {values[0]['I']} MLP channels"
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
    try:
        slices = _slices(rows, heads, values, [v["r"] for v in values])
    except NoLayoutError:
        return None
    if any(piece.width is None for piece in slices):
        return None
    return Coupling("query_heads", "query_head", slices)


def _slices(
    rows: Sequence[Row],
    units: Sequence[Sequence[frozenset[Place]]],
    values: Sequence[Mapping[str, int]],
    groups: Sequence[int] | None = None,
) -> tuple[Slice, ...]:
    """Index maps with letters for what the units own of each tensor, in both tiny models."""
    slices: list[Slice] = []
    for (parameter, dims), role in rows[0].roles.items():
        maps = [
            _index_maps([sorted(i for *key, i in unit if tuple(key) == (parameter, dims))
                         for unit in some], size)
            for some, size in zip(units, groups or [0] * len(units), strict=True)
        ]  # fmt: skip
        if len({len(found) for found in maps}) > 1:
            raise NoLayoutError(f"units own parts of {parameter} that follow no simple layout")
        module, _, name = parameter.rpartition(".")
        for number in range(len(maps[0])):
            numbers = [found[number] for found in maps]
            sizes_of = [polynomial_of([n[part] for n in numbers], values) for part in range(4)]
            if any(size is None for size in sizes_of):
                slices.append(_share(rows, units, (parameter, dims), role, numbers))
                continue
            offset, stride, width, jump = (size for size in sizes_of if size is not None)
            slices.append(Slice(module, name, dims, role, width, offset, stride, jump))
    if not any(piece.role == "consumer" for piece in slices):
        raise NoLayoutError("its units own nothing of what reads them")
    return tuple(slices)


def _share(
    rows: Sequence[Row],
    units: Sequence[Sequence[frozenset[Place]]],
    key: tuple[str, tuple[int, ...]],
    role: Role,
    numbers: Sequence[tuple[int, int, int, int]],
) -> Slice:
    """An equal share of the tensor for each unit, whatever the number is that says how much.

    Raises:
        NoLayoutError: units own something else.
    """
    parameter, dims = key
    for row, some, (offset, stride, width, jump) in zip(rows, units, numbers, strict=True):
        if offset or jump or width != stride or width * len(some) != row.lengths[key]:
            raise NoLayoutError(f"units own parts of {parameter} that follow no simple layout")
    module, _, name = parameter.rpartition(".")
    return Slice(module, name, dims, role)


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
                raise NoLayoutError("its units lie in no regular blocks")
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
