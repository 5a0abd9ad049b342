"""The KV cache of a model at a context and a batch.

bytes of a layer = KV heads * head_dim * 2 * bytes of a value * min(context, window) * batch
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..structure import Axis, Plan, Structure

# What configs call the kinds of layers that see the tokens of a window alone.
_WINDOWED = ("sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class Cache:
    """`structure` has the axes of every granularity; `head_dim` is the width of a key.

    `itemsize` are the bytes of a value; `windows` by layer how many tokens it sees (None: all).
    `latent` are the values that a token has in a layer in the place of heads, if it has.
    """

    structure: Structure
    head_dim: int
    itemsize: int
    windows: tuple[int | None, ...]
    context: int
    batch: int
    latent: int = 0

    def tokens(self, layer: int) -> int:
        """Tokens of a sequence that a layer has in the cache."""
        window = self.windows[layer] if layer < len(self.windows) else None
        return tokens_seen(self.context, window)

    def of_group(self, layer: int) -> int:
        """Bytes of a KV head of a layer."""
        each = 0 if self.latent else self.head_dim * 2
        return each * self.itemsize * self.tokens(layer) * self.batch

    def shared(self, layer: int) -> int:
        """Bytes of a layer that belong to all of its heads."""
        return self.latent * self.itemsize * self.tokens(layer) * self.batch

    def cost(self, axis: Axis) -> int:
        """Bytes that leave the cache with one unit of `axis`."""
        if axis.granularity == "kv_group":
            return self.of_group(axis.layer)
        return sum(self._groups[part] for part in axis.of if part in self._groups)

    def bytes(self, plan: Plan, structure: Structure) -> int:
        """Bytes that a plan, of the axes of `structure`, leaves."""
        left = dict(self._groups)
        for axis in structure.axes:
            if axis.granularity == "kv_group":
                kept = len(plan.kept(axis)) * self.of_group(axis.layer)
                left[axis.name] = kept + self.shared(axis.layer)
        for axis in structure.axes:
            if plan.removed(axis) and axis.granularity in ("layer", "attention_block"):
                left |= dict.fromkeys(axis.of, 0)
        return sum(left.values())

    @cached_property
    def _groups(self) -> Mapping[str, int]:
        """Bytes of each layer of the dense model, by the name of its axis of KV groups."""
        groups = (axis for axis in self.structure.axes if axis.granularity == "kv_group")
        return {
            axis.name: axis.units * self.of_group(axis.layer) + self.shared(axis.layer)
            for axis in groups
        }


def tokens_seen(context: int, window: int | None) -> int:
    """Tokens of a context that a layer with this window (None: without) sees."""
    return min(context, window or context)


def latent_width(config: Any) -> int:
    """Values that latent attention keeps of a token in a layer; 0 where there is none.

    As transformers caches them: the latent of keys and values, and the rotated key.
    """
    rank = getattr(config, "kv_lora_rank", None) or 0
    return int(rank + config.qk_rope_head_dim) if rank else 0


def windows_of(config: Any) -> tuple[int | None, ...]:
    """How many tokens each layer sees, as transformers' own cache reads the config."""
    window = getattr(config, "sliding_window", None) or getattr(
        config, "attention_chunk_size", None
    )
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [_WINDOWED[0] if window else "full_attention"] * config.num_hidden_layers
    return tuple(int(window) if window and kind in _WINDOWED else None for kind in kinds)
