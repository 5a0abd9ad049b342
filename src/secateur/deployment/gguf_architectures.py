"""Which architecture of llama.cpp holds a model, and what stands in the way if none does.

A family has one of its own, which has one width for all layers. `deci` (made for models found by
architecture search) has a width for each layer and a place for every bias, and computes what a
Llama does: so it holds all that has a Llama's layers, whatever the widths are.

What each holds is read from src/models/*.cpp of ggml-org/llama.cpp, as llama-cpp-python 0.3.36
has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import SecateurError

Q, K, V, O = (f"self_attn.{name}_proj" for name in "qkvo")  # noqa: E741
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
_INNER = frozenset((Q, K, V))
_EVERY = frozenset((Q, K, V, O, GATE, UP, DOWN))


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp knows layers.

    `interleaved`: the two halves of a head's rotary pairs lie beside one another. `square`: all
    heads together are as wide as the stream. `biases` are the linears with a place for one.
    Norms are stored with `shift` added.
    """

    name: str
    interleaved: bool = False
    square: bool = False
    biases: frozenset[str] = _INNER
    shift: float = 0.0
    varied: bool = False
    activation: str = "silu"


DECI = Architecture("deci", interleaved=True, biases=_EVERY, varied=True)

# By transformers' model_type: the family's own, then those that hold what it does not.
ARCHITECTURES: dict[str, tuple[Architecture, ...]] = {
    "llama": (Architecture("llama", interleaved=True, biases=_EVERY), DECI),
    "mistral": (Architecture("llama", interleaved=True, biases=_EVERY), DECI),
    "qwen2": (Architecture("qwen2", square=True), DECI),
    "qwen3": (Architecture("qwen3"),),
    "gemma3_text": (Architecture("gemma3", shift=1.0, activation="gelu_pytorch_tanh"),),
}


@dataclass(frozen=True)
class Sizes:
    """Heads, KV heads and MLP channels of a layer; 0 where the block is gone."""

    heads: int
    kv_heads: int
    width: int


def layer_sizes(shapes: Mapping[str, Sequence[int]], layers: int, head_dim: int) -> list[Sizes]:
    """Those of each layer, by the shapes of its linears' weights."""

    def rows(layer: int, linear: str) -> int:
        shape = shapes.get(f"model.layers.{layer}.{linear}.weight")
        return 0 if shape is None else shape[0]

    return [
        Sizes(rows(n, Q) // head_dim, rows(n, K) // head_dim, rows(n, GATE)) for n in range(layers)
    ]


def chosen(
    family: str,
    sizes: Sequence[Sizes],
    biases: frozenset[str],
    width: int,
    head_dim: int,
    activation: str,
) -> Architecture:
    """The first of the family's that holds such layers; `biases` are the linears that have one.

    Raises:
        SecateurError: none does; the message names the layers, and the option that avoids it.
    """
    known = ARCHITECTURES.get(family)
    if known is None:
        raise SecateurError(
            f"--to gguf knows no layers of the family {family!r}.\nIt knows:"
            f" {', '.join(ARCHITECTURES)}. A folder of the stock class (secateur inspect DIR says"
            " so) goes through llama.cpp's own converter."
        )
    why = ""
    for one in known:
        why = _misfit(one, sizes, biases, width, head_dim, activation)
        if not why:
            return one
    raise SecateurError(
        f"llama.cpp's {known[-1].name} {why}.\nPrune with --profile gguf, which keeps to what it"
        " holds."
    )


def _misfit(
    one: Architecture,
    sizes: Sequence[Sizes],
    biases: frozenset[str],
    width: int,
    head_dim: int,
    activation: str,
) -> str:
    """Why an architecture does not hold such layers; empty if it does."""
    if activation != one.activation:
        return f"computes {one.activation} in its MLPs, and this model {activation}"
    if not one.varied:
        for layer, own in enumerate(sizes):
            if own != sizes[0]:
                return f"has one width for all layers, and layers 0 and {layer} differ: " + (
                    "; ".join(map(_text, (sizes[0], own)))
                )
        if sizes[0].heads == 0 or sizes[0].width == 0:
            return "has attention and an MLP in every layer, and they are gone"
        if one.square and sizes[0].heads * head_dim != width:
            return (
                f"takes heads that are {width} wide together, and there are {sizes[0].heads} of"
                f" {head_dim}"
            )
    if extra := sorted(biases - one.biases):
        return f"has no place for the bias of {extra[0]}"
    return ""


def _text(sizes: Sizes) -> str:
    return f"{sizes.heads} heads ({sizes.kv_heads} KV) and {sizes.width} channels"
