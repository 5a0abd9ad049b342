"""The one loop over decoder layers. Every statistic, score, repair and evaluation walks with it.

    walk = Walk(source, tokens, batch=8)
    states = walk.embed()                  # hidden states before layer 0
    for step in walk.layers():             # one layer materialised at a time
        step.run(states)                   # states are now the hidden states after the layer

A second pass over the already cut prefix runs the same step twice, on two sets of states:

    step.run(dense); cut(step.module); step.run(student)

and `walk.layers(reverse=True)` visits the layers from last to first: with the inputs of each layer
kept (`step.run(states, into=next_states)`), gradients go down the same way.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..errors import SecateurError
from ..progress import track
from .activations import MEMORY_LIMIT, Activations

Call = tuple[tuple[Any, ...], dict[str, Any]]

# How many unlike tensors of one shape are looked through before an argument is kept as new.
_POOL_DEPTH = 4


@runtime_checkable
class LayerSource(Protocol):
    """What the loop needs of a model (`secateur.models.StreamedModel` has it)."""

    device: torch.device
    dtype: torch.dtype

    def __len__(self) -> int: ...

    def layer(self, index: int) -> AbstractContextManager[nn.Module]:
        """Layer `index` with its weights on the device, for as long as it is entered."""
        ...

    def front(self) -> AbstractContextManager[Callable[[Tensor], tuple[Tensor, list[Call]]]]:
        """Token ids to first hidden states and each layer's other arguments."""
        ...

    def back(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Last hidden states to logits, with gradients if the states ask for them."""
        ...


class Walk:
    """A way through the layers of `source` for `tokens` [window, token], `batch` windows at once.

    `limit` is the number of bytes of hidden states that may stay in memory; the layers `without`
    are not there.
    """

    def __init__(
        self,
        source: LayerSource,
        tokens: Int64[Tensor, "window token"],
        *,
        batch: int,
        limit: int = MEMORY_LIMIT,
        without: Collection[int] = (),
    ) -> None:
        self.source = source
        self.without = frozenset(without)
        self.tokens = tokens
        self.limit = limit
        self.batches = [
            slice(start, min(start + batch, len(tokens))) for start in range(0, len(tokens), batch)
        ]
        self._calls: list[list[Call]] = []

    def repeated(self, times: int) -> "Walk":
        """The way for the same windows `times` times over; no batch holds windows of two times."""
        other = Walk(
            self.source,
            self.tokens.repeat(times, 1),
            batch=1,
            limit=self.limit,
            without=self.without,
        )
        other.batches = [
            slice(start + batch.start, start + batch.stop)
            for start in range(0, len(other.tokens), len(self.tokens))
            for batch in self.batches
        ]
        return other

    def sharing(self, parts: int) -> "Walk":
        """The same way where `parts` sets of hidden states share the memory."""
        other = Walk(
            self.source, self.tokens, batch=1, limit=self.limit // parts, without=self.without
        )
        other.batches = self.batches
        return other

    def embed(self) -> Activations:
        """Run everything before layer 0, and note what the model passes to each layer."""
        states: Activations | None = None
        pool = _Pool()
        self._calls = []
        with self.source.front() as front:
            for windows in self.batches:
                hidden, calls = front(self.tokens[windows])
                if states is None:
                    shape = (*self.tokens.shape, hidden.shape[-1])
                    states = Activations(shape, self.source.dtype, limit=self.limit)
                states[windows] = hidden
                self._calls.append([(pool.share(args), pool.share(kw)) for args, kw in calls])
        assert states is not None, "there is at least one window"
        return states

    def layers(
        self,
        *,
        reverse: bool = False,
        lowest: int = 0,
        stage: str = "layers",
    ) -> "Iterator[LayerStep]":
        """Visit the layers from `lowest` up (or from the last down), one materialised at a time."""
        order = [i for i in range(lowest, len(self.source)) if i not in self.without]
        indices = reversed(order) if reverse else iter(order)
        for index in track(indices, stage, len(order), "layer"):
            with self.source.layer(index) as module:
                yield LayerStep(self, index, module)

    def call(self, index: int, batch: int) -> Call:
        """The arguments besides the hidden states of layer `index` for batch number `batch`."""
        return self._calls[batch][index]


class LayerStep:
    """One decoder layer with its weights, on the way."""

    def __init__(self, walk: Walk, index: int, module: nn.Module) -> None:
        self.index = index
        self.module = module
        self._walk = walk

    def run(self, states: Activations, *, into: Activations | None = None) -> None:
        """Send all windows through the layer, from `states` to `into` (default: in place).

        Raises:
            SecateurError: the layer's output is not finite.
        """
        into = into or states
        for windows, inputs, (args, kwargs) in self.batches(states):
            with torch.no_grad():
                output = hidden_of(self.module(inputs, *args, **kwargs))
            if not torch.isfinite(output).all():
                raise not_finite(f"the output of layer {self.index}", output.dtype)
            into[windows] = output

    def batches(self, states: Activations) -> Iterator[tuple[slice, Tensor, Call]]:
        """Which windows, their inputs on the device, and the layer's other arguments."""
        for number, windows in enumerate(self._walk.batches):
            inputs = states[windows].to(self._walk.source.device)
            yield windows, inputs, self._walk.call(self.index, number)


def not_finite(what: str, dtype: torch.dtype) -> SecateurError:
    """The error for NaN or infinity in activations, named by layer and tensor."""
    name = str(dtype).removeprefix("torch.")
    # float16 ends at 65,504, which activations of some models pass
    wider = "--dtype bfloat16 (or float32)" if dtype == torch.float16 else "--dtype float32"
    return SecateurError(
        f"NaN or infinity in {what}, computed in {name}.\n"
        f"Try {wider}; if it stays, the checkpoint is damaged: download it again."
    )


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a decoder layer returns (some families return tuples)."""
    hidden: Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden


class _Pool:
    """Keeps one copy of equal tensors: masks and rotary tables are the same for every batch."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}

    def share(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._share(value)
        if isinstance(value, dict):
            return {key: self.share(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(self.share(item) for item in value)
        return value

    def _share(self, tensor: Tensor) -> Tensor:
        known = self._known.setdefault((tensor.shape, tensor.dtype), [])
        for other in known[-_POOL_DEPTH:]:
            if other is tensor or torch.equal(other, tensor):
                return other
        known.append(tensor)
        return tensor
