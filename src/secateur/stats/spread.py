"""The spread of a consumer's inputs, where every token counts by how little there is in its stream.

    w_t = 1 / (|h_t|^2 |y_t|^2)         |y_t|^2 only where a norm stands between y and the stream
    C = sum_t w_t (x_t - m)(x_t - m)^T / sum_t w_t,        m = sum_t w_t x_t / sum_t w_t

with x the inputs, y the output, h the residual stream that the layer is given, |.|^2 means over
channels. Whatever reads the stream is behind a norm: an error there counts by its size beside the
stream. The first token of a window, and some others, have streams a thousand times as large as the
rest in real models, and unweighed they would be most of a mean of squares.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ranks import Ranks

# What norms add to a mean of squares before they divide by it.
_EPSILON = 1e-6
_ROWS = 256


def token_weights(
    stream: Float[Tensor, "*token hidden"], normed: Float[Tensor, "*token out"] | None = None
) -> Float[Tensor, "*token"]:
    """W of every token, fp32; `normed` is an output that a norm stands behind."""
    weights = _inverse(stream)
    return weights if normed is None else weights * _inverse(normed)


def _inverse(values: Float[Tensor, "*token width"]) -> Float[Tensor, "*token"]:
    return values.float().square().mean(dim=-1).add(_EPSILON).reciprocal()


@dataclass
class Spread:
    """Running sums of w, w (x - s) and w (x - s)(x - s)^T; s is the mean of the first tokens."""

    total: Float[Tensor, ""]
    shift: Float[Tensor, " channel"]
    sums: Float[Tensor, " channel"]
    products: Float[Tensor, "channel channel"]

    @classmethod
    def empty(cls, channels: int) -> "Spread":
        """Nothing seen yet."""
        sums = torch.zeros(channels, dtype=torch.float64)
        products = torch.zeros(channels, channels)
        return cls(torch.zeros((), dtype=torch.float64), torch.zeros(channels), sums, products)

    def update(
        self,
        inputs: Float[Tensor, "token channel"],
        weights: Float[Tensor, " token"] | None = None,
    ) -> None:
        """Add the tokens of one batch; without `weights` each counts 1."""
        if not len(inputs):
            return
        if weights is None:
            weights = torch.ones(len(inputs), device=inputs.device)
        if not self.total:
            self.shift = inputs[:_ROWS].float().mean(dim=0)
            for name in ("total", "sums", "products"):
                setattr(self, name, getattr(self, name).to(inputs.device))
        for some, own in zip(inputs.split(_ROWS), weights.split(_ROWS), strict=True):
            root = own.sqrt()
            rows = (some.float() - self.shift) * root[:, None]
            self.products.addmm_(rows.T, rows)
            self.sums += root @ rows
        self.total += weights.double().sum()

    def of_all(self, ranks: Ranks) -> "Spread":
        """What all ranks have seen, about the shift of the first one that has seen anything.

        With d = s - s' of a shift s and another s': w (x - s') = w (x - s) + w d, and so on.
        """
        if not ranks.several:
            return self
        shifts = ranks.gathered("shifts", self.shift[None])
        seen = [total > 0 for total in ranks.each("spread", float(self.total))]
        shift = shifts[seen.index(True) if any(seen) else 0].to(self.products.device)
        off = self.shift.to(shift.device) - shift
        sums, total = self.sums.to(shift.device), self.total.to(shift.device)
        products = self.products.addr_(off, (sums + total * off).float())
        products = products.addr_(sums.float(), off)
        parts = [total, sums + total * off, products]
        total, sums, products = ranks.summed("spread", parts)
        return Spread(total, shift, sums, products)

    @property
    def spread(self) -> Float[Tensor, "channel channel"]:
        """C, fp32."""
        total = self.total.clamp(min=torch.finfo(torch.float32).tiny)
        off = (self.sums / total).float()
        return torch.addr(self.products / total.float(), off, off, alpha=-1).cpu()

    def state(self) -> dict[str, Tensor]:
        """Tensors to save; `from_state` makes an equal value of them."""
        names = ("total", "shift", "sums", "products")
        return {name: getattr(self, name).cpu() for name in names}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Spread":
        """Read what `state` gave."""
        return cls(**state)


# Told of a consumer's inputs [token, channel] and the weights of the tokens.
Update = Callable[[Tensor, Tensor | None], None]


@contextmanager
def weighing(layer: nn.Module, updates: Mapping[nn.Module, Update]) -> Iterator[None]:
    """While entered, what passes consumers of `layer` is told with its weights.

    Of one that not all tokens of the layer pass (an expert's), the weights are None.
    """
    passing = _Passing(updates)
    places = [
        layer.register_forward_pre_hook(passing.begin),
        layer.register_forward_hook(passing.end),
        *(module.register_forward_hook(passing.consumer) for module in updates),
        *(m.register_forward_pre_hook(passing.norm) for m in layer.modules() if may_be_norm(m)),
    ]
    try:
        yield
    finally:
        for place in places:
            place.remove()


def may_be_norm(module: nn.Module) -> bool:
    """Whether a module has one number for each channel, as norms do."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 1


class _Passing:
    """One batch in a layer: what its consumers were given and gave, and which go into a norm."""

    def __init__(self, updates: Mapping[nn.Module, Update]) -> None:
        self._updates = updates
        self._hidden: Tensor | None = None
        self._seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._normed: set[nn.Module] = set()

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._hidden = args[0].detach().flatten(0, -2)
        self._seen, self._normed = {}, set()

    def consumer(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._seen[module] = args[0].detach(), output.detach()

    def norm(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        given = args[0] if args else None
        if isinstance(given, Tensor):
            self._normed |= {
                consumer
                for consumer, (_, output) in self._seen.items()
                if given.data_ptr() == output.data_ptr() and given.shape == output.shape
            }

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        assert self._hidden is not None, "the layer began"
        for consumer, update in self._updates.items():
            if consumer not in self._seen:
                continue
            inputs, gave = (part.flatten(0, -2) for part in self._seen[consumer])
            alike = len(gave) == len(self._hidden)
            normed = gave if consumer in self._normed else None
            update(inputs, token_weights(self._hidden, normed) if alike else None)
        self._hidden, self._seen = None, {}
