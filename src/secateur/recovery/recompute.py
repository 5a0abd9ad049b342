"""Layers that keep their inputs alone and run once more on the way back: memory for time.

A training then holds the activations of one layer and not of all, and a step takes about a third
longer: one more way forward.
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .halves import Halves

# Of the memory that is left, what layers may keep: the rest is for the tensors of the moment.
_SHARE = 0.6


def recomputed(layers: Iterable[nn.Module]) -> None:
    """Make each of `layers` run again on the way back, with the same dropout."""
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def kept_bytes(halves: Halves, ids: Tensor) -> int:
    """Bytes that the layers keep of `ids` [example, token] for the way back, weights aside."""
    kept: dict[int, int] = {}
    own = halves.storages

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = halves.hidden(ids)  # whose graph holds all that was kept: no address comes twice
    del hidden
    return sum(kept.values())


def fits(kept: float, parameters: Iterable[Tensor], free: int) -> bool:
    """Whether layers may keep so much of what goes through the model at once.

    `free` bytes are left on the device, and gradients and Adam's two moments are still to come.
    """
    to_come = sum(3 * parameter.nbytes for parameter in parameters)
    return kept <= _SHARE * (free - to_come)
