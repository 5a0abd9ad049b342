"""Which architecture of llama.cpp holds a model's layers, and what stands in the way if none does.

A family has one of its own, which has one width for all layers. `deci` (made for models found by
architecture search) has a width for each layer and a place for every bias, and computes what a
Llama does: so it holds all that has a Llama's layers, whatever the widths are.

What each holds is read from src/models/*.cpp of ggml-org/llama.cpp, as llama-cpp-python 0.3.36
has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SecateurError
from .layers import DOWN, GATE, UP, K, O, Q, Sizes, V

_INNER = frozenset((Q, K, V))
_EVERY = frozenset((Q, K, V, O, GATE, UP, DOWN))


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp knows layers.

    `interleaved`: the two halves of a head's rotary pairs lie beside one another. `square`: all
    heads together are as wide as the stream. `biases` are the linears with a place for one.
    Norms are stored with `shift` added. `varied`: every layer has its own widths. `factors`: the
    frequencies of the rotary embedding may be divided by some. `windows`: some layers look back
    over a window alone; the embedding is scaled by the root of the stream's width.
    """

    name: str
    interleaved: bool = False
    square: bool = False
    biases: frozenset[str] = _INNER
    shift: float = 0.0
    varied: bool = False
    factors: bool = False
    windows: bool = False
    activation: str = "silu"


_LLAMA = Architecture("llama", interleaved=True, biases=_EVERY, factors=True)
DECI = Architecture("deci", interleaved=True, biases=_EVERY, varied=True, factors=True)

# By transformers' model_type: the family's own, then those that hold what it does not.
ARCHITECTURES: dict[str, tuple[Architecture, ...]] = {
    "llama": (_LLAMA, DECI),
    "mistral": (_LLAMA, DECI),
    "phi3": (_LLAMA, DECI),  # with its linears one by one
    "qwen2": (Architecture("qwen2", square=True), DECI),
    "qwen3": (Architecture("qwen3"),),
    "gemma3_text": (
        Architecture("gemma3", shift=1.0, windows=True, activation="gelu_pytorch_tanh"),
    ),
}


def first_that_holds(
    architectures: Sequence[Architecture],
    sizes: Sequence[Sizes],
    biases: frozenset[str],
    width: int,
    head_dim: int,
) -> Architecture:
    """The first one that holds such layers; `biases` are the linears that have one.

    Raises:
        SecateurError: none does; the message names the layers, and the option that avoids it.
    """
    why = ""
    for one in architectures:
        why = _misfit(one, sizes, biases, width, head_dim)
        if not why:
            return one
    raise SecateurError(
        f"llama.cpp's {architectures[-1].name} {why}.\nPrune the dense model with --profile gguf,"
        " which keeps to what it holds of it."
    )


def _misfit(
    one: Architecture,
    sizes: Sequence[Sizes],
    biases: frozenset[str],
    width: int,
    head_dim: int,
) -> str:
    """Why an architecture does not hold such layers; empty if it does."""
    if any(own.kv_heads and own.heads % own.kv_heads for own in sizes):
        return "has as many query heads in every KV group of a layer, and they differ"
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
