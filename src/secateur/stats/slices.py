"""What is read by slices of one tensor: the inputs of experts that share a 3-D weight.

Experts are no modules, so no hook sees their inputs. Their code takes a slice `weight[expert]` and
multiplies: that is what is watched here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Watch(TorchFunctionMode):
    def __init__(self, observers: Mapping[int, Callable[[int, Tensor], None]]) -> None:
        super().__init__()
        self._observers = observers
        # The slices themselves are kept, or another tensor could get the id of one that is gone.
        self._slices: dict[int, tuple[Tensor, int, int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__ and id(args[0]) in self._observers:
            self._slices[id(result)] = (result, id(args[0]), int(args[1]))
        elif len(args) > 1 and id(args[1]) in self._slices and isinstance(args[0], Tensor):
            _, weight, index = self._slices[id(args[1])]
            self._observers[weight](index, args[0])
        return result


@contextmanager
def watched(observers: Mapping[Tensor, Callable[[int, Tensor], None]]) -> Iterator[None]:
    """While entered, each observer sees (slice, inputs) of what reads a slice of its tensor."""
    if not observers:
        yield
        return
    with _Watch({id(tensor): observer for tensor, observer in observers.items()}):
        yield
