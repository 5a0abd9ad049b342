"""Parts of a layer without the rest: as far as one consumer, or without what is known already.

A block is replayed by what its consumer gave: attention by the output of o_proj. That a block gives
nothing else is asked of the numbers, see `anatomy`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ranks import Ranks
from ..stats.stream import Call, hidden_of
from .norms import gains
from .observe import Consumer, Seen, hooked, see_multipliers


@dataclass(frozen=True)
class Block:
    """The outermost module that gives what its consumer gives, and nothing else but None.

    It gives a tensor, or that and so many `nones`; `flat` where windows and tokens are one.
    """

    module: nn.Module
    flat: bool = False
    nones: int | None = None

    def giving(self, output: Float[Tensor, "window token out"]) -> Any:
        """What the module gives when its consumer gives `output`.

        A copy: some layers add to it in place.
        """
        shaped = output.clone().flatten(0, 1) if self.flat else output.clone()
        return shaped if self.nones is None else (shaped, *[None] * self.nones)

    @classmethod
    def of(cls, module: nn.Module, gave: Any, output: Tensor) -> "Block | None":
        """The block of a module that `gave` this when its consumer gave `output`, if it is one."""
        nones = None
        if isinstance(gave, tuple | list):
            gave, *others = gave
            if any(other is not None for other in others):
                return None
            nones = len(others)
        if not isinstance(gave, Tensor) or gave.numel() != output.numel():
            return None
        same = _same(gave.reshape(output.shape), output)
        return cls(module, gave.dim() < output.dim(), nones) if same else None


@contextmanager
def replayed(outputs: Mapping[Block, Tensor]) -> Iterator[None]:
    """While entered, each block gives at once what it is said to; it does not run."""
    with ExitStack() as stack:
        for block, output in outputs.items():
            own = block.module.__dict__
            stack.callback(_put_back, own, own.get("forward"))
            own["forward"] = _always(block.giving(output))
        yield


def _always(given: Any) -> Callable[..., Any]:
    return lambda *_, **__: given


def _put_back(own: dict[str, Any], forward: Any) -> None:
    del own["forward"]
    if forward is not None:
        own["forward"] = forward


class _Reached(Exception):  # noqa: N818 - it is no error
    """The forward of a layer ends here: the consumer that was asked for is next."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs


def inputs_of(
    layer: nn.Module, hidden: Float[Tensor, "window token hidden"], call: Call, consumer: Consumer
) -> Float[Tensor, "window token channel"]:
    """Run `layer` as far as `consumer`, and give what that would be given."""

    def stop(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise _Reached(args[0])

    with hooked([consumer.module.register_forward_pre_hook(stop)]), torch.no_grad():
        try:
            layer(hidden, *call[0], **call[1])
        except _Reached as reached:
            return reached.inputs.view(*hidden.shape[:-1], -1)
    raise AssertionError(f"{consumer.name} was called before, and now it is not")


@dataclass(frozen=True)
class Anatomy:
    """What one batch tells of a layer: `multipliers` as of `stream_multipliers`, and blocks.

    All by consumer, in calling order; `seen` is that batch. `gains` are those of norms between
    consumers and the stream.
    """

    seen: Seen
    multipliers: Mapping[str, float | None]
    blocks: Mapping[str, Block]
    gains: Mapping[str, Tensor]

    def of_first(self, ranks: Ranks) -> "Anatomy":
        """The same with what the first rank was told by its batch: others may tell something else.

        Multipliers are measured, and what is fitted to which target follows from them.
        """
        if not ranks.several:
            return self
        multipliers = ranks.told("multipliers", lambda: dict(self.multipliers))
        gains = ranks.told("gains", lambda: {n: own.tolist() for n, own in self.gains.items()})
        device = self.seen.after.device
        made = {name: torch.tensor(own, device=device) for name, own in gains.items()}
        return replace(self, multipliers=multipliers, gains=made)


def anatomy(layer: nn.Module, hidden: Tensor, call: Call, consumers: Sequence[Consumer]) -> Anatomy:
    """Run `layer` once, and without the blocks that can be replayed: at least the consumers.

    Wider blocks are believed if the layer gives the same, to the bit, with all of them replayed.
    """
    gave: dict[nn.Module, Any] = {}

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        first, *others = output if isinstance(output, tuple | list) else (output,)
        copied = first.clone() if isinstance(first, Tensor) else first
        gave[module] = (copied, *others) if isinstance(output, tuple | list) else copied

    around = {c.name: _around(layer, c, consumers) for c in consumers}
    modules = {module for some in around.values() for module in some}
    with hooked(module.register_forward_hook(record) for module in modules):
        seen, multipliers = see_multipliers(layer, hidden, call, consumers)
    wide, narrow = {}, {}
    for name, output in seen.outputs.items():
        tried = (Block.of(m, gave[m], output) for m in around[name] if m in gave)
        found = [block for block in tried if block is not None]
        wide[name], narrow[name] = found[0], found[-1]
    with replayed({block: seen.outputs[n] for n, block in wide.items()}), torch.no_grad():
        after = hidden_of(layer(hidden, *call[0], **call[1]))
    behind = {} if any(multipliers.values()) else gains(layer, hidden, call, seen)
    return Anatomy(seen, multipliers, wide if _same(after, seen.after) else narrow, behind)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, NaN included."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _around(layer: nn.Module, consumer: Consumer, consumers: Sequence[Consumer]) -> list[nn.Module]:
    """The modules in a layer that hold this consumer and no other, from the outermost in."""
    others = {other.module for other in consumers} - {consumer.module}
    inner = (module for path, module in layer.named_modules() if path)
    held = ((module, set(module.modules())) for module in inner)
    return [module for module, own in held if consumer.module in own and not own & others]
