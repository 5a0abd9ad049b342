"""Other parameters in a layer for a while: masked ones, or those of a student."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn

# A module and the name of one of its parameters, to what takes its place (None: none is there).
Substitutes = Mapping[tuple[nn.Module, str], nn.Parameter | None]


@contextmanager
def substituted(parameters: Substitutes) -> Iterator[None]:
    """Put `parameters` in place; the old ones come back afterwards, on errors too."""
    with ExitStack() as stack:
        for (module, name), parameter in parameters.items():
            stack.callback(module._parameters.__setitem__, name, module._parameters[name])
            module._parameters[name] = parameter
        yield
