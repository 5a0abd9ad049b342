"""The one loop over decoder layers. Every statistic, score, repair and evaluation walks with it.

    walk = Walk(source, tokens, batch=8)
    states = walk.embed()                  # hidden states before layer 0
    for step in walk.layers():             # one layer materialised at a time
        step.run(states)                   # states are now the hidden states after the layer

A second pass over the already cut prefix runs the same step twice, on two sets of states:

    step.run(dense); cut(step.module); step.run(student)

and `walk.layers(reverse=True)` visits the layers from last to first: with the inputs of each layer
kept (`step.run(states, into=next_states)`), gradients go down the same way.

A pass that is kept goes on where an earlier run was cut short:

    kept = walk.kept("statistics", holders=["moments"])
    states = walk.embed(kept)                           # or those after the last layer done
    for step in walk.layers(kept, {"hidden": states}):  # the layers that are left
        step.run(states)
        step.found = {"mean": ...}                      # kept with the states when the step ends
"""

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..checkpoint import Kept, Store, code_version
from ..device_memory import Room, product_precision
from ..progress import note, track
from ..ranks import ALONE, Ranks, this
from .activations import MEMORY_LIMIT, Activations
from .finite import Finite
from .pool import Pool

Call = tuple[tuple[Any, ...], dict[str, Any]]


@runtime_checkable
class LayerSource(Protocol):
    """What the loop needs of a model (`secateur.models.StreamedModel` has it)."""

    device: torch.device
    dtype: torch.dtype
    name: str
    room: Room

    @property
    def identity(self) -> str:
        """A hash of weights and config; empty where passes over them are not to be kept."""
        ...

    def __len__(self) -> int: ...

    def layer(self, index: int) -> AbstractContextManager[nn.Module]:
        """Layer `index` with its weights on the device, for as long as it is entered."""
        ...

    def expect(self, index: int | None) -> None:
        """Layer `index` is entered next and may be read by now; None: none is, leave off."""
        ...

    def front(self) -> AbstractContextManager[Callable[[Tensor], tuple[Tensor, list[Call]]]]:
        """Token ids to first hidden states and each layer's other arguments."""
        ...

    def back(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Last hidden states to logits, with gradients if the states ask for them."""
        ...


class Walk:
    """A way through the layers of `source` for `tokens` [window, token], `batch` windows at once.

    `limit` is the number of bytes of hidden states that may stay in memory, beside those that the
    source has room for on its device; the layers `without` are not there. What passes find is kept
    in `store`, if there is one. Of several `ranks` this one goes with its `own` windows, which keep
    the numbers that they have among all.
    """

    def __init__(
        self,
        source: LayerSource,
        tokens: Int64[Tensor, "window token"],
        *,
        batch: int,
        limit: int = MEMORY_LIMIT,
        without: Collection[int] = (),
        store: Store | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.source, self.store = source, store
        self.without = frozenset(without)
        self.tokens, self.batch = tokens, batch
        self.limit, self.ranks = limit, ranks
        self.own = ranks.share(len(tokens))
        self.batches = _batches(self.own, batch)
        # of all windows, whoever goes with them: what is kept is known by these
        self._whole = _batches(slice(0, len(tokens)), batch)
        self._calls: list[list[Call]] = []

    def shared(self) -> "Walk":
        """The way of this rank's windows alone; what it gives is to be merged with the others'.

        With fewer windows than ranks each goes with all of them: then nothing is merged.
        """
        ranks = this()
        if not ranks.several or len(self.tokens) < ranks.count:
            return self
        return Walk(
            self.source,
            self.tokens,
            batch=self.batch,
            limit=self.limit,
            without=self.without,
            store=self.store,
            ranks=ranks,
        )

    def like(
        self,
        *,
        batch: int | None = None,
        times: int = 1,
        parts: int = 1,
    ) -> "Walk":
        """The way for the same windows in other batches, or `times` times over.

        No batch holds windows of two times. `parts` sets of hidden states share the memory; the
        room on the device is shared by all that there are, first come, first served.
        """
        other = Walk(
            self.source,
            self.tokens.repeat(times, 1),
            batch=batch or 1,
            limit=self.limit // parts,
            without=self.without,
            store=self.store,
            ranks=self.ranks,
        )
        if batch is None:
            other.batch, other._whole = self.batch, self._repeated(self._whole, times)
            other.batches = self._repeated(self.batches, times)
        return other

    def _repeated(self, batches: Sequence[slice], times: int) -> list[slice]:
        assert times == 1 or not self.ranks.several, "windows of several times are not shared"
        starts = range(0, times * len(self.tokens), len(self.tokens))
        return [slice(at + own.start, at + own.stop) for at in starts for own in batches]

    def kept(self, kind: str, **asked: Any) -> Kept:
        """The pass of a kind over this way, with what an earlier run found of it."""
        if self.store is None or not self.source.identity:
            return Kept()
        return self.store.kept(kind, self.known_by, asked, self.source.name)

    def kept_with_states(self, kind: str, **asked: Any) -> Kept:
        """The same for a pass that keeps hidden states: of several ranks, in memory alone.

        Each has those of its own windows, and would go on with those of other windows.
        """
        return Kept() if this().several else self.kept(kind, **asked)

    def earlier(self, kind: str) -> list[tuple[Mapping[str, Any], Kept]]:
        """Whole passes of a kind over this way: what was asked, and what was found."""
        if self.store is None or not self.source.identity:
            return []
        return self.store.earlier(kind, self.known_by)

    @cached_property
    def known_by(self) -> dict[str, Any]:
        """Everything that what a pass finds depends on, besides what it is asked."""
        source, tokens = self.source, self.tokens.contiguous()
        return {
            "model": source.identity,
            "tokens": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
            "shape": list(tokens.shape),
            "batches": [windows.stop for windows in self._whole],
            "without": sorted(self.without),
            "dtype": str(source.dtype),
            "device": _machine(source.device),
            "threads": torch.get_num_threads(),
            "code": code_version(),
        }

    def states(self, shape: tuple[int, int, int], dtype: torch.dtype) -> Activations:
        """Hidden states that nobody has written yet, where the way has a place for them."""
        room, first = self.source.room, self.own.start
        return Activations(shape, dtype, limit=self.limit, room=room, first=first)

    def states_of(self, tensor: Tensor) -> Activations:
        """A copy of hidden states [window, token, hidden]."""
        room, first = self.source.room, self.own.start
        return Activations.of(tensor, limit=self.limit, room=room, first=first)

    def kept_states(
        self, kept: Kept, name: str, shape: tuple[int, int, int], dtype: torch.dtype
    ) -> Activations:
        """States that belong to a pass, with what an earlier run wrote."""
        if kept.folder is None:
            return self.states(shape, dtype)
        return Activations.kept(kept, name, shape, dtype, self.limit, self.source.room)

    def embed(self, kept: Kept | None = None, name: str = "hidden") -> Activations:
        """Run everything before layer 0, and note what the model passes to each layer.

        Where an earlier run was cut short, its states `name` after the last layer that is done.
        """
        states: Activations | None = None
        for windows, hidden in self._begun():
            if states is None:
                count, length = self.own.stop - self.own.start, self.tokens.shape[1]
                states = self.states((count, length, hidden.shape[-1]), self.source.dtype)
            states[windows] = hidden
        assert states is not None, "there is at least one window"
        earlier = kept.state(name) if kept is not None and kept.done else None
        if earlier is not None:
            states.tensor.copy_(earlier)
        return states

    def prepared(self) -> "Walk":
        """Itself, with what the model passes to each layer noted; hidden states are elsewhere."""
        for _ in self._begun():
            pass
        return self

    def _begun(self) -> Iterator[tuple[slice, Tensor]]:
        """The first hidden states of each batch."""
        pool = Pool()
        self._calls = []
        with self.source.front() as front:
            for windows in self.batches:
                hidden, calls = front(self.tokens[windows])
                self._calls.append([(pool.share(args), pool.share(kw)) for args, kw in calls])
                pool.end_batch()
                yield windows, hidden

    def layers(
        self,
        kept: Kept | None = None,
        states: Mapping[str, Activations] | None = None,
        *,
        reverse: bool = False,
        lowest: int = 0,
        highest: int | None = None,
        stage: str = "layers",
    ) -> "Iterator[LayerStep]":
        """Visit the layers from `lowest` up to `highest` (or down), one materialised at a time.

        Those that are done in `kept` are not visited. After each step, what it found is kept with
        the `states` as they are by then.
        """
        way = Way(self, kept or Kept(), states or {})
        last = len(self.source) - 1 if highest is None else highest
        order = range(lowest, last + 1)
        for ((_, step),) in side_by_side([way], reversed(order) if reverse else order, stage=stage):
            yield step

    def call(self, index: int, batch: int) -> Call:
        """The arguments besides the hidden states of layer `index` for batch number `batch`."""
        return self._calls[batch][index]


@dataclass(frozen=True)
class Way:
    """A pass on its way: what it keeps, and its hidden states by name."""

    walk: Walk
    kept: Kept
    states: Mapping[str, Activations]

    def has_left(self, index: int) -> bool:
        """Whether the pass has to go through a layer."""
        return index not in self.walk.without and index not in self.kept.done

    def end_layer(self, step: "LayerStep") -> None:
        """Keep what was found in a layer, and the states after it."""
        tensors = {name: one.tensor for name, one in self.states.items()}
        found = step.found() if callable(step.found) else step.found
        self.kept.layer(step.index, found, step.value, tensors)


def side_by_side(
    ways: Sequence[Way], order: Iterable[int], *, stage: str
) -> "Iterator[list[tuple[Way, LayerStep]]]":
    """Visit the layers for several ways through one source: each is materialised once for all.

    Each way that has not done the layer, with its step.
    """
    source = ways[0].walk.source
    left = [index for index in order if any(way.has_left(index) for way in ways)]
    done = min((way.kept.done for way in ways), key=len)
    if done and left:
        note(f"{stage}: going on after layer {done[-1]}, where an earlier run was cut short")
    following = dict(itertools.zip_longest(left, left[1:]))
    try:
        for index in track(left, stage, len(left), "layer"):
            going = [way for way in ways if way.has_left(index)]
            with source.layer(index) as module:
                source.expect(following[index])
                steps = [(way, LayerStep(way.walk, index, module)) for way in going]
                yield steps
            for way, step in steps:
                way.end_layer(step)
    finally:
        source.expect(None)


def _batches(windows: slice, batch: int) -> list[slice]:
    starts = range(windows.start, windows.stop, batch)
    return [slice(start, min(start + batch, windows.stop)) for start in starts]


def _machine(device: torch.device) -> list[str]:
    """What decides how a device computes, as far as it says so."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    own = name or torch.backends.cpu.get_cpu_capability()
    return [device.type, own, product_precision()]


class LayerStep:
    """One decoder layer with its weights, on the way.

    `found` and `value` (which JSON can say) are what the pass keeps of it. A function that gives
    what was found is asked when the layer's weights have gone. What `finite` is shown is checked
    when all windows have passed.
    """

    def __init__(self, walk: Walk, index: int, module: nn.Module) -> None:
        self.index = index
        self.module = module
        self.found: Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]] = {}
        self.value: Any = None
        self.finite = Finite(walk.ranks)
        self.walk = walk

    def along(self, walk: Walk) -> "LayerStep":
        """The same layer on another way."""
        other = LayerStep(walk, self.index, self.module)
        other.finite = self.finite
        return other

    def run(self, states: Activations, *, into: Activations | None = None) -> None:
        """Send all windows through the layer, from `states` to `into` (default: in place).

        Raises:
            SecateurError: the layer's output, or what else `finite` was shown, is not finite.
        """
        into = into or states
        for windows, inputs, (args, kwargs) in self.batches(states):
            with torch.no_grad():
                output = hidden_of(self.module(inputs, *args, **kwargs))
            self.finite.see(f"the output of layer {self.index}", output)
            into[windows] = output
        self.finite.check()

    def batches(self, states: Activations) -> Iterator[tuple[slice, Tensor, Call]]:
        """Which windows, their inputs on the device, and the layer's other arguments."""
        for number, windows in enumerate(self.walk.batches):
            inputs = states[windows].to(self.walk.source.device)
            yield windows, inputs, self.walk.call(self.index, number)


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a decoder layer returns (some families return tuples)."""
    hidden: Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden
