"""What a recovery trains: adapters on the linears, consumers, or everything."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..config import RecoverConfig
from ..errors import SecateurError
from ..models import OpenModel
from ..progress import note
from ..recovery import Groupwise, Lora, Plain

Trained = Plain | Lora | Groupwise


def adaptable(opened: OpenModel, config: RecoverConfig) -> tuple[str, ...]:
    """The linears that adapters can be put on: those that have a part in some unit.

    What adapters leave out is told.

    Raises:
        SecateurError: adapters are wanted, and there is no such linear, or one that cannot be
            quantised.
    """
    # of all granularities: where one KV group is left, keys and values are in no unit that prune
    # takes by default
    axes = [axis for axis in opened.structures.axes if axis.kind in ("attention", "mlp")]
    modules = {m.module for axis in axes for m in axis.members if m.linear}
    kinds = {
        path: type(module).__name__
        for path, module in opened.skeleton.named_modules()
        if path in modules and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    }
    if config.trained not in ("lora", "groupwise"):
        return tuple(kinds)
    if not kinds:
        raise SecateurError(
            f"{config.model} has no plain linear to put adapters on.\nType: --recipe distil"
        )
    turned = [path for path, kind in kinds.items() if kind == "Conv1D"]
    if config.trained == "groupwise" and turned:
        raise SecateurError(
            f"{turned[0]} is a Conv1D, and only plain linears are quantised by group.\n"
            "Type --recipe lora or --recipe distil."
        )
    if any(not m.linear for axis in axes for m in axis.consumers):
        note(f"experts are left as they are: {config.trained} adapts plain linears")
    return tuple(kinds)


def make_trained(
    model: Any, opened: OpenModel, config: RecoverConfig, linears: Sequence[str]
) -> Trained:
    """Make the parameters of `model` that are to be trained ready, and freeze all others."""
    if config.trained == "lora":
        return Lora(
            model,
            linears,
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            seed=config.seed,
        )
    if config.trained == "groupwise":
        return Groupwise(
            model,
            linears,
            opened.weights,
            bits=config.bits,
            group=config.group,
            grid=config.grid,
            rank=config.rank,
            alpha=config.alpha,
            seed=config.seed,
        )
    names = [name for name, _ in model.named_parameters()]
    if config.trained == "consumers":
        consumers = {m.tensor for axis in opened.structure.axes for m in axis.consumers}
        consumers |= {_bias_of(tensor) for tensor in consumers}
        names = [name for name in names if name in consumers]
    return Plain(model, names, opened.weights)


def trained_tensors(trained: Trained, opened: OpenModel) -> Mapping[str, Tensor]:
    """The trained tensors by name; LoRA's changes are added to the weights as stored."""
    return trained.tensors(opened.weights) if isinstance(trained, Lora) else trained.tensors()


def _bias_of(tensor: str) -> str:
    """The bias beside a weight: `x.bias` of `x.weight`, `down_proj_bias` of `down_proj`."""
    return tensor[: -len("weight")] + "bias" if tensor.endswith(".weight") else f"{tensor}_bias"
