"""A causal LM in two halves: the hidden states of tokens, and the logits of those that are wanted.

Logits are the largest tensors of a training by far, and most of the time not all are needed, and
never all at once. Both halves are the model's own code: its forward runs with its base replaced by
a stand-in that hands hidden states through, so that what a family does to logits (caps, scales) is
done. A model whose forward knows more than that is found out by a look at a few tokens, and runs
whole.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

# Of a model and its base: what is called in the base's place.
BeginBase = Callable[[Any, nn.Module], Callable[..., Any]]

# Logits of the two halves and of the whole may differ by so much of the largest: kernels differ.
_ROUNDING = 0.02


class Halves:
    """The halves of `model` (in evaluation mode), which are run in the context `within()`.

    They are compared with the whole on `ids` [example, token], a few tokens on the model's device.
    Of a model whose weights are on many ranks, `begin` gives what gathers them for its base.
    """

    def __init__(
        self,
        model: Any,
        ids: Tensor,
        within: Callable[[], AbstractContextManager[Any]],
        begin: BeginBase | None = None,
    ) -> None:
        self._model, self._within = model, within
        self._base: nn.Module | None = None
        self._run: Callable[..., Any] | None = None
        self._output: Any = None
        with torch.no_grad(), within():
            whole = model(input_ids=ids, use_cache=False).logits
        self.vocabulary: int = whole.shape[-1]
        for base in _bases(model):
            self._base, self._run = base, begin(model, base) if begin else base
            if self._agree(ids, whole):
                return
        self._base = None

    @property
    def splits(self) -> bool:
        """Whether there are two halves; else the model runs whole."""
        return self._base is not None

    @property
    def head_trains(self) -> bool:
        """Whether every piece of logits adds to the gradient of a matrix as large as the head."""
        head = self._model.get_output_embeddings()
        return self._base is not None and any(p.requires_grad for p in head.parameters())

    @property
    def storages(self) -> frozenset[int]:
        """Where the model's own tensors are."""
        own = (*self._model.parameters(), *self._model.buffers())
        return frozenset(tensor.untyped_storage().data_ptr() for tensor in own)

    def hidden(self, ids: Int64[Tensor, "example token"]) -> Float[Tensor, "example token hidden"]:
        """The last hidden states; where a model runs whole, logits in their place."""
        with self._within():
            if self._base is None or self._run is None:
                whole: Tensor = self._model(input_ids=ids, use_cache=False).logits
                return whole
            output = self._run(input_ids=ids, use_cache=False)
        self._output = None if isinstance(output, tuple) else type(output)
        last: Tensor = output[0] if self._output is None else output.last_hidden_state
        return last

    def logits(self, hidden: Float[Tensor, "place hidden"]) -> Float[Tensor, "place vocabulary"]:
        """What is foretold from hidden states."""
        if self._base is None:
            return hidden
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        given = hidden[None]
        output = (given,) if self._output is None else self._output(last_hidden_state=given)
        with self._within(), _stand_in(self._base, output):
            # no hook of the whole model: what is gathered for its base is there
            logits: Tensor = self._model.forward(input_ids=ids, use_cache=False).logits
        return logits[0]

    def _agree(self, ids: Tensor, whole: Tensor) -> bool:
        """Whether the halves give the logits that the whole gives."""
        try:
            with torch.no_grad():
                found = self.logits(self.hidden(ids).flatten(0, 1)).view(whole.shape)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False  # its forward wants something else of its base
        return bool((found - whole).abs().max() <= _ROUNDING * whole.abs().max())


def _bases(model: Any) -> Iterator[nn.Module]:
    """The modules that may be the base which the model's forward runs: opt's is its decoder."""
    base = model.base_model
    if base is model:
        return
    yield base
    if isinstance(decoder := getattr(base, "decoder", None), nn.Module):
        yield decoder


@contextmanager
def _stand_in(base: nn.Module, output: Any) -> Iterator[None]:
    base.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del base.forward
