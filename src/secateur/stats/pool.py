"""One copy of equal arguments: masks and rotary tables are the same for every batch."""

from typing import Any

import torch
from torch import Tensor

# How many unlike tensors of one shape are looked through before an argument is kept as new.
_DEPTH = 4


class Pool:
    """Keeps one copy of equal tensors."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        # What was looked at of this batch, so that a tensor that all layers get is compared once:
        # on a GPU each comparison waits for it. Tensors are kept, or another could get the id.
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def end_batch(self) -> None:
        """The next batch has tensors of its own."""
        self._seen.clear()

    def share(self, value: Any) -> Any:
        """The same with tensors that were seen before in the place of equal ones."""
        if isinstance(value, Tensor):
            return self._share(value)
        if isinstance(value, dict):
            return {key: self.share(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(self.share(item) for item in value)
        return value

    def _share(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._seen:
            self._seen[id(tensor)] = tensor, self._equal(tensor)
        return self._seen[id(tensor)][1]

    def _equal(self, tensor: Tensor) -> Tensor:
        known = self._known.setdefault((tensor.shape, tensor.dtype), [])
        for other in known[-_DEPTH:]:
            if other is tensor or torch.equal(other, tensor):
                return other
        known.append(tensor)
        return tensor
