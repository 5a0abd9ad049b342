"""GGUF, which llama.cpp and what is built on it run: one file, written tensor by tensor.

The package `gguf` writes it and knows the names. What is ours is which architecture holds a pruned
model (`gguf_architectures`), and its tensors as llama.cpp wants them (`gguf_tensors`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor

from ..gguf_types import ROW
from ..models import OpenModel
from ..progress import note, track
from .gguf_architectures import Architecture, Sizes, chosen, layer_sizes
from .gguf_fields import context_length, rotary, sharper, write_sizes, write_vocabulary
from .gguf_quantise import K_KINDS, check_quantiser, quantised
from .gguf_tensors import Entry, arrays, declared, entries, exact_kind, filled_sizes, formatted
from .gguf_tokens import Vocabulary, vocabulary
from .targets import Asked, Written, target

# By the name that is typed: the format of the rows, and llama.cpp's number of it.
PLAIN = {
    "f16": ("F16", "MOSTLY_F16"),
    "f32": ("F32", "ALL_F32"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
    "q5_1": ("Q5_1", "MOSTLY_Q5_1"),
    "q5_0": ("Q5_0", "MOSTLY_Q5_0"),
    "q4_1": ("Q4_1", "MOSTLY_Q4_1"),
    "q4_0": ("Q4_0", "MOSTLY_Q4_0"),
}
_NAMED = 3


def _default(opened: OpenModel) -> str:
    """The format of few bits that the weights are in, if llama.cpp has it; or 16 bits."""
    return exact_kind(opened.codes) or "f16"


@target(
    "gguf",
    engines="llama.cpp, Ollama, LM Studio",
    kinds=(*PLAIN, *K_KINDS),
    needs=("gguf",),
    default=_default,
)
def gguf(folder: Path, asked: Asked) -> Written:
    """Write NAME-KIND.gguf, and a Modelfile beside it."""
    check_quantiser(asked.kind)
    layout = _layout(asked)
    file = folder / f"{asked.stem}.gguf"
    if asked.kind in K_KINDS:
        whole = folder / "whole.gguf"
        _write(whole, asked, layout, "f32")
        quantised(whole, file, asked.kind)
        whole.unlink()
    else:
        _write(file, asked, layout, asked.kind)
    _write_modelfile(folder, file, asked)
    facts = {"architecture": layout.one.name, "bytes": file.stat().st_size}
    return Written(file.name, f"llama-cli -m {file.name}", facts, bare=True)


@dataclass(frozen=True)
class _Layout:
    """What of a model goes into the file, found out before anything is written."""

    one: Architecture
    sizes: Sequence[Sizes]
    head_dim: int
    rope: dict[str, Any]
    factors: Tensor | None
    vocabulary: Vocabulary | None


def _layout(asked: Asked) -> _Layout:
    """Raises: SecateurError, if llama.cpp does not hold the model or its tokenizer."""
    opened, config = asked.opened, asked.opened.config
    shapes = {name: spec.shape for name, spec in opened.weights.specs.items()}
    head_dim = opened.family.head_dim(config)
    sizes = layer_sizes(shapes, int(config.num_hidden_layers), head_dim)
    biases = frozenset(
        name.split(".", 3)[3].removesuffix(".bias")
        for name in shapes
        if name.startswith("model.layers.") and name.endswith(".bias")
    )
    family = getattr(transformers, opened.family.config).model_type
    names = ("hidden_activation", "hidden_act")
    activation = next((found for n in names if (found := getattr(config, n, None))), "")
    one = chosen(family, sizes, biases, int(config.hidden_size), head_dim, activation)
    rope, factors = rotary(config, head_dim)
    if (context := context_length(config)) < int(config.max_position_embeddings):
        note(f"the file says {context:,} tokens of context: llama.cpp has no windows that slide")
    rows = shapes["model.embed_tokens.weight"][0]
    words = None if asked.tokenizer is None else vocabulary(asked.tokenizer, rows)
    return _Layout(one, sizes, head_dim, rope, factors, words)


def _write(file: Path, asked: Asked, layout: _Layout, kind: str) -> None:
    """The file in a format of `PLAIN`."""
    import gguf as library

    opened, config = asked.opened, asked.opened.config
    one = layout.one
    codes = opened.codes if kind == exact_kind(opened.codes) else {}
    architecture = next(a for a, name in library.MODEL_ARCH_NAMES.items() if name == one.name)
    names = library.get_tensor_name_map(architecture, len(layout.sizes))
    found = entries(
        opened.weights,
        codes,
        one,
        layout.sizes,
        head_dim=layout.head_dim,
        width=int(config.hidden_size),
        tied=bool(config.tie_word_embeddings),
        sharper=sharper(config, layout.head_dim),
        named=lambda name: str(names.get_name(name, try_suffixes=(".weight", ".bias"))),
    )
    if layout.factors is not None:
        factors = layout.factors
        found.append(Entry("rope_freqs.weight", tuple(factors.shape), lambda: factors))
    found, odd = formatted(found, PLAIN[kind][0], "F16" if codes else "Q8_0")
    if odd:
        note(
            f"{len(odd)} tensors ({', '.join(odd[:_NAMED])} ...) have 16 bits: their rows are no"
            f" multiples of {ROW}. --align {ROW} at pruning makes them so"
        )
    writer = library.GGUFWriter(file, one.name)
    writer.add_name(opened.name)
    writer.add_file_type(library.LlamaFileType[PLAIN[kind][1]])
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    write_sizes(writer, config, one, filled_sizes(layout.sizes), layout.head_dim, layout.rope)
    write_vocabulary(writer, layout.vocabulary)
    declared(found, writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in track(arrays(found), "writing", len(found), "tensor"):
        writer.write_tensor_data(array)
    writer.close()


def _write_modelfile(folder: Path, file: Path, asked: Asked) -> None:
    """What `ollama create` reads."""
    lines = [f"FROM ./{file.name}"]
    end = getattr(asked.tokenizer, "eos_token", None)
    if end and '"' not in end:
        lines.append(f'PARAMETER stop "{end}"')
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
