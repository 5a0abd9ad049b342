"""A tiny model of a family, from the config of a real one.

Flags (biases, ALiBi, parallel blocks, norms) stay, sizes shrink. The sizes are odd on purpose and
differ from one another, so that a dimension of the result tells what it counts.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ...errors import SecateurError
from ...modeling_secateur import OWN_KEYS, PREFIX
from ..streamed import empty_model
from .shallow import stock_config
from .sizes import Sizes, plain_rope, small_values, tiny_choices

_TOKENS = 5


def running_model(config: Any, seed: int) -> Any:
    """The first small model that runs: not every family takes every choice of sizes, or fp64.

    Raises:
        SecateurError: none does; the message is that of the first.
    """
    failures: list[Exception] = []
    for sizes, _ in tiny_choices(config):
        try:
            model = tiny_model(config, sizes, seed)
            model(input_ids=tokens(seed), use_cache=False)
            return model
        except Exception as error:  # the family's own code: anything may come out of it
            failures.append(error)
    if isinstance(failures[0], SecateurError):
        raise failures[0]
    raise does_not_run(config, failures[0]) from failures[0]


def does_not_run(config: Any, error: Exception) -> SecateurError:
    """What to say of a family whose code runs on no small model."""
    reason = " ".join(str(error).split())[:200]
    return SecateurError(
        f"The coupled structures of {config.model_type!r} cannot be traced: its code does not run"
        f" on a small model ({type(error).__name__}: {reason}).\n"
        "This family needs a declared layout."
    )


def tiny_model(config: Any, sizes: Sizes, seed: int) -> Any:
    """A random model with these sizes and their dtype, all experts routed, activations smooth.

    Raises:
        SecateurError: the family's own code does not take such a config.
    """
    config = dense_config(config)
    raw = dict(config.to_dict()) | small_values(config, sizes)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if raw.get(name) is not None:
            raw[name] = 0
    if raw.get("rope_parameters"):
        raw["rope_parameters"] = plain_rope(raw["rope_parameters"])
    raw.pop("rope_scaling", None)
    raw.pop("dtype", None)
    try:
        tiny = type(config).from_dict(raw)
        tiny._attn_implementation = "eager"
        model = empty_model(tiny, sizes.dtype)
        fill(model, seed, sizes.dtype)
    except Exception as error:  # the family's own code: anything may come out of it
        reason = " ".join(str(error).split())[:200]
        raise SecateurError(
            f"The coupled structures of {config.model_type!r} cannot be traced: a small model of"
            f" it does not come about ({type(error).__name__}: {reason})."
        ) from error
    return model


def dense_config(config: Any) -> Any:
    """The stock config that a pruned model's was made from; any other as it is."""
    name = type(config).__name__
    if not name.startswith(PREFIX):
        return config
    stock = getattr(transformers, name.removeprefix(PREFIX))
    return stock_config(stock, {k: v for k, v in config.to_dict().items() if k not in OWN_KEYS})


def fill(model: Any, seed: int, dtype: torch.dtype) -> None:
    """Give every parameter of a model on meta small random values."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                shape, kind = parameter.shape, torch.float64
                values = torch.randn(shape, generator=generator, dtype=kind) * 0.3 + 0.05
                module._parameters[name] = nn.Parameter(values)
    model.to(dtype)
    model.tie_weights()


def tokens(seed: int) -> Tensor:
    """A few token ids [1, token]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 64, (1, _TOKENS), generator=generator)


def linearise_norms(
    layer: nn.Module, sizes: Mapping[str, float] | None = None
) -> dict[str, nn.Module]:
    """Make every norm a product with its weight: its statistics couple all channels.

    They say nothing about which channels must go together. What a norm gets is divided by the
    number of its name in `sizes`, if there is one. Returns the norms by name.
    """
    norms = {
        name: module
        for name, module in layer.named_modules()
        if "Norm" in type(module).__name__ and not any(module.children())
    }
    for name, norm in norms.items():
        size = (sizes or {}).get(name, 1.0)
        norm.forward = _scaled(norm, lambda x, size=size: size)  # type: ignore[misc]
    return norms


def norm_sizes(model: nn.Module, ids: Tensor) -> dict[str, float]:
    """The greatest value that each norm gets: divided by it, no depth makes values explode.

    The norms are linear afterwards.
    """
    sizes: dict[str, float] = {}
    for name, norm in linearise_norms(model).items():

        def size(x: Tensor, name: str = name) -> float:
            sizes[name] = float(x.abs().max()) or 1.0
            return sizes[name]

        norm.forward = _scaled(norm, size)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    return sizes


def _scaled(norm: Any, size: Callable[[Tensor], float]) -> Any:
    def forward(x: Tensor, *more: Any, **others: Any) -> Tensor:
        x = x / size(x)
        for gate in (*more, *others.values()):
            if isinstance(gate, Tensor):
                x = x * nn.functional.silu(gate)
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        x = x if weight is None else x * weight
        return x if bias is None else x + bias

    return forward
