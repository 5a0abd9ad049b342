"""From the last hidden states to logits, by the modules that do it.

The model's own forward is the only sure way, but most of it is about layers, positions and masks.
The first call goes that way and notes which modules stand between the layers and the head; where
these alone give the same logits to the last bit, they are called from then on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Head:
    """A function from hidden states [batch, token, hidden] to logits; `whole` is the sure way."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        whole: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self._model, self._layers, self._whole, self._device = model, layers, whole, device
        self._chain: list[nn.Module] | None = None

    def __call__(
        self, hidden: Float[Tensor, "batch token *hidden"]
    ) -> Float[Tensor, "batch token vocabulary"]:
        """Logits, with gradients if the hidden states ask for them."""
        if self._chain is None:
            with _recorded(self._between()) as calls:
                logits = self._whole(hidden)
            self._chain = _chain(calls, logits)
            if not self._alone(hidden, logits):
                self._chain = []
            return logits
        return self._directly(hidden) if self._chain else self._whole(hidden)

    def _between(self) -> Iterator[nn.Module]:
        """Modules that no layer is in, and that are in no layer."""
        inside = {id(module) for layer in self._layers for module in layer.modules()}
        for module in self._model.modules():
            if not any(id(part) in inside for part in module.modules()):
                yield module

    def _alone(self, hidden: Tensor, logits: Tensor) -> bool:
        """Whether the modules of the chain alone give these logits."""
        if not self._chain:
            return False
        with torch.no_grad():
            return torch.equal(self._directly(hidden), logits)

    def _directly(self, hidden: Tensor) -> Tensor:
        hidden = hidden.to(self._device)
        for module in self._chain or ():
            hidden = module(hidden)
        return hidden


# A module that was called, with its first input and its output.
_Call = tuple[nn.Module, Tensor, Tensor]


@contextmanager
def _recorded(modules: Iterator[nn.Module]) -> Iterator[list[_Call]]:
    """The calls of these modules from one tensor to another, while it is entered."""
    calls: list[_Call] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls.append((module, args[0], output))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(record).remove)
        yield calls


def _chain(calls: list[_Call], logits: Tensor) -> list[nn.Module]:
    """The modules that led to the logits, each given what the one before it gave."""
    chain: list[nn.Module] = []
    wanted = logits
    for module, given, output in reversed(calls):
        if _same(output, wanted):
            chain.insert(0, module)
            wanted = given
    return chain


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()
