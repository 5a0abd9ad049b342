"""What of a model goes into a GGUF file, found out before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import SecateurError
from ..models import OpenModel
from ..progress import note
from .gguf_architectures import ARCHITECTURES, Architecture, first_that_holds
from .gguf_fields import context_length, rotary, sharper
from .gguf_tokens import Vocabulary, vocabulary
from .layers import Sizes, family_of, layer_sizes

# Other names of activations.
_SAME = {"swish": "silu"}


@dataclass(frozen=True)
class Layout:
    """The architecture, the sizes of each layer, the rotary embedding and the tokens.

    `width` is that of the residual stream, as it is by now; `tied` says that the head is the
    embedding. Norms of q are multiplied by `sharper`: by that attention is sharper than with the
    root that llama.cpp divides scores by.
    """

    one: Architecture
    sizes: Sequence[Sizes]
    width: int
    head_dim: int
    tied: bool
    sharper: float
    rope: dict[str, Any]
    factors: Tensor | None
    vocabulary: Vocabulary | None


def held_by(opened: OpenModel) -> list[Architecture]:
    """The architectures that compute what a model does, whatever the widths of its layers are.

    Raises:
        SecateurError: there is none; the message says why.
    """
    family, config = family_of(opened), opened.config
    if family not in ARCHITECTURES:
        raise SecateurError(
            f"--to gguf knows no layers of the family {family!r}.\nIt knows:"
            f" {', '.join(ARCHITECTURES)}. A folder of the stock class (secateur inspect DIR says"
            " so) goes through llama.cpp's own converter."
        )
    known = ARCHITECTURES[family]
    _, factors = rotary(config, opened.family.head_dim(config))
    names = ("hidden_activation", "hidden_act")
    activation = next((found for n in names if (found := getattr(config, n, None))), "")
    why = ""
    found = []
    for one in known:
        if _SAME.get(activation, activation) != one.activation:
            why = f"computes {one.activation} in its MLPs, and this model {activation}"
        elif factors is not None and not one.factors:
            why = "has no rotary embedding of the kind 'llama3'"
        elif getattr(config, "use_bidirectional_attention", False):
            why = "looks back alone, and this model both ways"
        else:
            found.append(one)
    if not found:
        raise SecateurError(
            f"llama.cpp's {known[-1].name} {why}.\nRun the model in transformers, or export it to"
            " onnx."
        )
    return found


def layout_of(opened: OpenModel, tokenizer: Any) -> Layout:
    """What goes into the file; `tokenizer` is None if none is to.

    Raises:
        SecateurError: llama.cpp does not hold the model, its layers or its tokenizer.
    """
    held, config = held_by(opened), opened.config
    shapes = {name: spec.shape for name, spec in opened.weights.specs.items()}
    rows, width = shapes["model.embed_tokens.weight"]
    head_dim = opened.family.head_dim(config)
    sizes = layer_sizes(shapes, int(config.num_hidden_layers), head_dim)
    biases = frozenset(
        name.split(".", 3)[3].removesuffix(".bias")
        for name in shapes
        if name.startswith("model.layers.") and name.endswith(".bias")
    )
    one = first_that_holds(held, sizes, biases, width, head_dim)
    if one.windows and width != int(config.hidden_size):
        raise SecateurError(
            f"llama.cpp's {one.name} scales embeddings by the root of the stream's width, and that"
            f" was cut from {config.hidden_size} to {width}.\nPrune with --granularity"
            " kv_group,channel, which leaves it."
        )
    rope, factors = rotary(config, head_dim)
    if (context := context_length(config)) < int(config.max_position_embeddings):
        note(
            f"the file says {context:,} tokens of context: llama.cpp's {one.name} has no windows"
            " that slide"
        )
    words = None if tokenizer is None else vocabulary(tokenizer, rows)
    return Layout(
        one,
        sizes,
        width,
        head_dim,
        bool(config.tie_word_embeddings),
        sharper(config, head_dim),
        rope,
        factors,
        words,
    )
