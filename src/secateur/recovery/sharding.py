"""A model whose weights are divided over ranks while it trains (FSDP2), as if it were in one place.

Of every tensor a rank has some rows: of N ranks ceil(rows / N) each, as far as they go. A layer is
gathered while it runs, forward and back, and what is outside the layers (embeddings, norm, head)
from the first layer to the way back. Gradients are summed where the rows are, and so Adam's moments
and the best parameters are there alone as well.

To gather and to sum, all ranks have to come: each makes as many passes as the one that has the most
micro-batches, some of which do not count.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from ..data import Examples
from ..errors import SecateurError
from ..memory import give_back
from ..ranks import Ranks
from .plain_weights import relative_rate
from .state import Spread
from .together import Copies, added, cut

_BASE = "secateur_base"


def divide(model: Any, layers: Iterable[nn.Module], ranks: Ranks, device: torch.device) -> None:
    """Leave each rank its rows of all tensors of `model`, on `device`; frozen ones as well.

    Raises:
        SecateurError: a parameter that has no rows.
    """
    for name, parameter in model.named_parameters():
        if not parameter.ndim:
            raise SecateurError(
                f"{name} is a single number, and --shard divides tensors by their rows.\n"
                "Leave --shard out."
            )
    mesh = init_device_mesh(device.type, (ranks.count,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # losses are divided by the tokens of the whole step: gradients add up
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            # experts that no token of this rank has come to
            module.set_reduce_scatter_unused_params(True)


def base_of(model: Any, base: nn.Module) -> Callable[..., Any]:
    """What runs the `base` of a divided model as the model's own forward: it gathers first."""
    setattr(model, _BASE, lambda **given: base(**given))
    register_fsdp_forward_method(model, _BASE)
    run: Callable[..., Any] = getattr(model, _BASE)
    return run


class Shards(Copies):
    """Every rank has some rows of all tensors of `model`, of which `parameters` are trained.

    `self.parameters` are this rank's rows, which alias those of the model. The given mapping is
    emptied: the whole ones go as they are divided.
    """

    def __init__(
        self,
        model: Any,
        layers: Iterable[nn.Module],
        parameters: dict[str, nn.Parameter],
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self._places = _places(model, parameters)
        self.ranks, self._model = ranks, model
        self.shapes = {name: own.shape for name, own in parameters.items()}
        self._rates = {name: relative_rate(own) for name, own in parameters.items()}
        parameters.clear()
        divide(model, layers, ranks, device)
        self._divided: dict[str, Any] = {
            name: getattr(module, attribute) for name, (module, attribute) in self._places.items()
        }
        self.parameters = {
            name: nn.Parameter(one.to_local().detach()) for name, one in self._divided.items()
        }
        self.begin = base_of

    def rate(self, name: str) -> float:
        """See `Copies`: of the whole tensor."""
        return self._rates[name]

    def parts(
        self, data: Examples, rows: Int64[Tensor, " example"], micro: int | None
    ) -> Iterator[tuple[Tensor, bool]]:
        """See `Copies`: as many as the rank has that has the most."""
        all_parts = [
            cut(data, rows[Ranks(index, self.ranks.count).share(len(rows))], micro)
            for index in range(self.ranks.count)
        ]
        own = all_parts[self.ranks.index]
        short = itertools.repeat((rows[:1], False), max(map(len, all_parts)) - len(own))
        yield from ((part, True) for part in own)
        yield from short

    def step_sums(self, losses: Sequence[Tensor]) -> tuple[float, float]:
        """See `Copies`: the gradients of this rank's rows are sums already."""
        for name, own in self.parameters.items():
            gradient = self._divided[name].grad
            own.grad = None if gradient is None else gradient.to_local()
            self._divided[name].grad = None
        give_back()  # what was gathered went in pieces
        total, norm = added(losses, self._norm())
        sums = torch.tensor([total, norm**2], dtype=torch.float64)
        (of_all,) = self.ranks.summed("a step", [sums])
        total, square = of_all.tolist()
        return total, square**0.5

    def rest(self) -> None:
        """See `Copies`: what is outside the layers was gathered, and stays until a way back."""
        self._model.reshard()
        give_back()

    def gather(self) -> None:
        """See `Copies`: on the first rank, in the model too."""
        for name, own in self.parameters.items():
            whole = self.ranks.gathered(name, own.detach())
            if self.ranks.first:
                module, attribute = self._places[name]
                self.parameters[name] = nn.Parameter(whole)
                setattr(module, attribute, self.parameters[name])

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `Copies`: each is gathered when all ranks ask for it, one at a time."""
        like = {
            name: torch.empty(self._shape(name, own), dtype=own.dtype, device="meta")
            for name, own in tensors.items()
        }

        def gathered(name: str) -> Tensor:
            own = tensors[name]
            return self.ranks.gathered(name, own) if own.ndim else own

        return Spread(like, gathered)

    def part(self, tensor: Tensor) -> Tensor:
        """See `Copies`: this rank's rows."""
        if not tensor.ndim:
            return tensor
        rows = -(-len(tensor) // self.ranks.count)
        return tensor[rows * self.ranks.index : rows * (self.ranks.index + 1)].clone()

    def _shape(self, name: str, own: Tensor) -> torch.Size:
        return self.shapes[name.partition("/")[2]] if own.ndim else own.shape


def _places(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> dict[str, tuple[nn.Module, str]]:
    """The module that has each of `parameters`, and its name there."""
    found = {
        id(own): (module, name)
        for module in model.modules()
        for name, own in module.named_parameters(recurse=False)
    }
    return {name: found[id(own)] for name, own in parameters.items()}
