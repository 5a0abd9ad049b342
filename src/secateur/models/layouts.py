"""The words that a family's layout is declared with: what a unit owns of each tensor of a layer.

The letters of sizes are those of `secateur.structure.size`: K KV heads, r query heads a KV head,
d head_dim, I MLP channels, E experts. Slices of tensors that a model does not have (biases, norms)
are left out there.
"""

from dataclasses import replace

from ..structure import Coupling, Role, Slice
from ..structure.size import ONE, ZERO, I, K, Size, d, r

Slices = tuple[Slice, ...]
Couplings = tuple[Coupling, ...]


def rows(
    module: str, width: Size, offset: Size = ZERO, stride: Size | None = None, dim: int = 0
) -> Slices:
    """What writes: of a linear (or norm) each unit owns `width` rows and their biases.

    `stride` leads from one unit to the next; by default they lie without gaps.
    """
    return (
        Slice(module, "weight", (dim,), "producer", width, offset, stride),
        Slice(module, "bias", (0,), "producer", width, offset, stride),
    )


def columns(module: str, width: Size, dim: int = 1) -> Slices:
    """What reads: of a linear each unit owns `width` columns."""
    return (Slice(module, "weight", (dim,), "consumer", width),)


def separate(out: str) -> Slices:
    """Of a KV group: q, k and v are linears of their own, beside the one that reads them."""
    path = out.rpartition(".")[0]
    return (
        *rows(f"{path}.q_proj", r * d),
        *rows(f"{path}.k_proj", d),
        *rows(f"{path}.v_proj", d),
        *columns(out, r * d),
    )


def stacked(module: str, out: str, dims: tuple[int, int] = (0, 1)) -> Slices:
    """Of a KV group: one linear makes all of q, then all of k, then all of v."""
    written, read = dims
    return (
        *rows(module, r * d, dim=written),
        *rows(module, d, K * r * d, dim=written),
        *rows(module, d, K * r * d + K * d, dim=written),
        *columns(out, r * d, read),
    )


def interleaved(module: str, out: str) -> Slices:
    """Of a KV group: one linear makes its q, k and v side by side, then those of the next."""
    group = r * d + 2 * d
    return (
        *rows(module, r * d, ZERO, group),
        *rows(module, d, r * d, group),
        *rows(module, d, r * d + d, group),
        *columns(out, r * d),
    )


def norms(width: Size) -> Slices:
    """Of a KV group: weights of norms over all of q and all of k, `width` of them a head."""
    return (*rows("self_attn.q_norm", r * width), *rows("self_attn.k_norm", width))


def between(*modules: str, dims: tuple[int, int] = (0, 1)) -> Slices:
    """Of a channel: what all `modules` but the last write, and the last reads."""
    *writers, reader = modules
    written = (piece for module in writers for piece in rows(module, ONE, dim=dims[0]))
    return (*written, *columns(reader, ONE, dims[1]))


def expert(
    parameter: str,
    dim: int,
    role: Role = "producer",
    *,
    offset: Size = ZERO,
    stride: Size = ONE,
    jump: Size = 2 * I,
) -> Slice:
    """Of a channel of an expert: a tensor of all experts, `jump` from one to the next."""
    return Slice("mlp.experts", parameter, (0, dim), role, ONE, offset, stride, jump)


def groups(slices: Slices) -> Couplings:
    """KV groups, and query heads inside: where a group owns r times something, a head owns it."""
    heads = tuple(
        replace(piece, width=one, stride=one, jump=piece.stride or width)
        for piece in slices
        for width, one in ((r * d, d), (r, ONE))
        if piece.width == width
    )
    return (
        Coupling("attention", "kv_group", slices),
        Coupling("query_heads", "query_head", heads),
    )


def channels(slices: Slices) -> Couplings:
    """MLP channels; nothing where there are none."""
    return (Coupling("mlp", "channel", slices),) if slices else ()


def experts(router: Slices, *slices: Slice) -> Couplings:
    """Channels inside experts, and whole experts with what else has a row for each (`router`)."""
    whole = {p.parameter: Slice(p.module, p.parameter, (0,), p.role) for p in slices}
    return (
        Coupling("experts", "expert_channel", slices),
        Coupling("whole_experts", "expert", (*router, *whole.values())),
    )
