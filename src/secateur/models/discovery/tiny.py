"""A tiny model of a family, from the config of a real one.

Flags (biases, ALiBi, parallel blocks, norms) stay, sizes shrink. The sizes are odd on purpose and
differ from one another, so that a dimension of the result tells what it counts.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from ...errors import SecateurError
from ...modeling_secateur import OWN_KEYS, PREFIX
from ..streamed import empty_model

# Under which names configs keep a size. The first three every decoder config has (transformers
# maps them to the family's own).
_SIZES: dict[str, tuple[str, ...]] = {
    "K": ("num_key_value_heads", "num_kv_heads"),
    "d": ("head_dim",),
    "I": (
        "intermediate_size",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "ffn_dim",
        "n_inner",
        "ffn_hidden_size",
    ),
    "E": ("num_local_experts", "num_experts", "n_routed_experts"),
    # every expert gets every token: one that gets none shows nothing
    "top": ("num_experts_per_tok", "moe_topk", "top_k_experts"),
}
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_SHARES = ("partial_rotary_factor", "rotary_pct")
_TOKENS = 5


@dataclass(frozen=True, slots=True)
class Sizes:
    """One choice of the letters of a layout; `D` follows where a family has no head_dim."""

    K: int
    r: int
    d: int
    I: int  # noqa: E741
    E: int
    D: int

    @property
    def values(self) -> dict[str, int]:
        """By letter."""
        return {name: getattr(self, name) for name in ("K", "r", "d", "I", "E", "D")}


_OF_LENGTH = ("llama_4_scaling_beta", "original_max_position_embeddings")
Sharing = Literal["grouped", "multi-head", "multi-query"]


def sharings(config: Any) -> tuple[Sharing, ...]:
    """How query heads may share KV heads; what the config says comes first.

    Some families have a flag of their own for it, and some configs a number that is not used.
    """
    stated = next((n for name in _SIZES["K"] if (n := getattr(config, name, None))), 0)
    if stated == 1:
        return ("multi-query", "grouped", "multi-head")
    if stated and stated < config.num_attention_heads:
        return ("grouped", "multi-head", "multi-query")
    return ("multi-head", "multi-query", "grouped")


def tiny_choices(config: Any) -> Iterator[tuple[Sizes, Sizes]]:
    """Pairs of sizes to try, the likeliest first; a family's code does not take all of them."""
    for sharing in sharings(config):
        for own_width in (True, False) if _states_head_dim(config) else (False,):
            one, other = (tiny_sizes(config, number, sharing, own_width) for number in (0, 1))
            yield one, other


def tiny_sizes(config: Any, number: int, sharing: Sharing, own_width: bool) -> Sizes:
    """The first or second choice of sizes; `own_width`: heads need not add up to hidden_size.

    Raises:
        SecateurError: the config lacks what every decoder has.
    """
    check_counts(config)
    choices = {
        "grouped": ((3, 2), (2, 4)),
        "multi-head": ((3, 1), (5, 1)),
        "multi-query": ((1, 6), (1, 8)),
    }
    K, r = choices[sharing][number]
    d = (8, 4)[number]
    D = (30, 40)[number] if own_width and K > 1 else K * r * d
    return Sizes(K=K, r=r, d=d, I=(21, 13)[number], E=(5, 7)[number], D=D)


def check_counts(config: Any) -> None:
    """Refuse a config that does not say how wide and deep the model is.

    Raises:
        SecateurError: it lacks what every decoder has.
    """
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
        if not isinstance(getattr(config, name, None), int):
            raise SecateurError(
                f"The config of {config.model_type!r} has no {name}, which every decoder with"
                " attention heads states.\nExpected a causal language model of transformers."
            )


def running_model(config: Any, seed: int) -> Any:
    """The first small model that runs: not every family takes every choice of sizes.

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
    reason = " ".join(str(failures[0]).split())[:200]
    raise SecateurError(
        f"The coupled structures of {config.model_type!r} cannot be traced: its code does not run"
        f" on a small model ({type(failures[0]).__name__}: {reason}).\n"
        "This family needs a declared layout."
    ) from failures[0]


def tiny_model(config: Any, sizes: Sizes, seed: int) -> Any:
    """A random fp64 model with these sizes, its experts all routed and its activation smooth.

    Raises:
        SecateurError: the family's own code does not take such a config.
    """
    config = dense_config(config)
    raw = dict(config.to_dict())
    names = getattr(config, "attribute_map", None) or {}
    values: dict[str, Any] = {
        "hidden_size": sizes.D,
        "num_attention_heads": sizes.K * sizes.r,
        "vocab_size": 64,
        "word_embed_proj_dim": sizes.D,
        "rotary_dim": sizes.d // 2,
        "query_pre_attn_scalar": sizes.d,
        "experts_implementation": "eager",
        **dict.fromkeys(_ACTIVATIONS, "silu"),
        **dict.fromkeys(_SHARES, 0.5),
    }
    letters = sizes.values | {"top": sizes.E}
    for letter, attributes in _SIZES.items():
        values |= dict.fromkeys(attributes, letters[letter])
    for name, value in values.items():
        name = names.get(name, name)
        if raw.get(name) is not None:
            raw[name] = value
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if raw.get(name) is not None:
            raw[name] = 0
    if raw.get("rope_parameters"):
        raw["rope_parameters"] = _plain_rope(raw["rope_parameters"])
    raw.pop("rope_scaling", None)
    raw.pop("dtype", None)
    try:
        tiny = type(config).from_dict(raw)
        tiny._attn_implementation = "eager"
        model = empty_model(tiny, torch.float64)
        fill(model, seed)
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
    raw = {key: value for key, value in config.to_dict().items() if key not in OWN_KEYS}
    return stock.from_dict(raw | {"model_type": stock.model_type})


def fill(model: Any, seed: int) -> None:
    """Give every parameter of a model on meta small random values."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                shape, kind = parameter.shape, torch.float64
                values = torch.randn(shape, generator=generator, dtype=kind) * 0.3 + 0.05
                module._parameters[name] = nn.Parameter(values)
    model.to(torch.float64)
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
    def forward(x: Tensor) -> Tensor:
        x = x / size(x)
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        x = x if weight is None else x * weight
        return x if bias is None else x + bias

    return forward


def _states_head_dim(config: Any) -> bool:
    return config.to_dict().get("head_dim") is not None and not isinstance(
        getattr(type(config), "head_dim", None), property
    )


def _plain_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters without scaling, whose factors would have to fit the head width."""
    if any(isinstance(value, dict) for value in parameters.values()):
        return {key: _plain_rope(value) for key, value in parameters.items()}
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    # what code besides the rotation reads there: no scaling by length then
    kept = {name: parameters[name] for name in _OF_LENGTH if name in parameters}
    return plain | kept | {name: 0.5 for name in _SHARES if parameters.get(name) is not None}
