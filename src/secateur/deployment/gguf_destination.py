"""GGUF, which llama.cpp and what is built on it run: one file, written tensor by tensor.

The package `gguf` writes it and knows the names. What is ours is which architecture holds a pruned
model (`gguf_layout`), and its tensors as llama.cpp wants them (`gguf_tensors`).
"""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import SecateurError
from ..gguf_types import BLOCKS, ROW, stored_type
from ..models import OpenModel
from ..progress import note, track
from ..units import size_text
from .destinations import Asked, Written, destination
from .gguf_fields import write_sizes, write_vocabulary
from .gguf_layout import Layout, layout_of
from .gguf_quantise import K_KINDS, check_quantiser, quantised
from .gguf_tensors import Entry, arrays, declared, entries, exact_kind, filled_sizes, formatted
from .stacked import unstacked

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


@destination(
    "gguf",
    engines="llama.cpp, Ollama, LM Studio",
    kinds=(*PLAIN, *K_KINDS),
    needs=("gguf",),
    extra="gguf",
    default=_default,
    words=True,
    heads=tuple(PLAIN),
)
def gguf(folder: Path, asked: Asked) -> Written:
    """Write NAME-KIND.gguf, and a Modelfile beside it."""
    check_quantiser(asked.kind)
    asked = replace(asked, opened=unstacked(asked.opened))
    layout = layout_of(asked.opened, asked.tokenizer)
    file = folder / f"{asked.stem}.gguf"
    if asked.kind in K_KINDS:
        whole = folder / "whole.gguf"
        found = _write(whole, replace(asked, head=None), layout, "f32")
        _tell_odd(found, K_KINDS[asked.kind].base)
        quantised(whole, file, asked.kind, asked.head and PLAIN[asked.head][0])
        whole.unlink()
    else:
        found = _write(file, asked, layout, asked.kind)
        _tell_odd(found, PLAIN[asked.kind][0])
    _write_modelfile(folder, file, asked)
    facts = {"architecture": layout.one.name, "bytes": file.stat().st_size}
    run = "" if asked.tokenizer is None else "llama-cli -m {path}"
    return Written(file.name, run, facts, bare=True)


def _write(file: Path, asked: Asked, layout: Layout, kind: str) -> list[Entry]:
    """Write the file in a format of `PLAIN`; what is in it.

    Raises:
        SecateurError: llama.cpp has no name for a tensor, or the disk has no room for the file.
    """
    import gguf as library

    opened, config, one = asked.opened, asked.opened.config, layout.one
    as_codes = kind == exact_kind(opened.codes)
    found = entries(
        opened.weights,
        opened.codes,
        layout,
        as_codes=as_codes,
        named=_namer(one.name, len(layout.sizes)),
    )
    if layout.factors is not None:
        factors = layout.factors
        found.append(Entry("rope_freqs.weight", tuple(factors.shape), lambda: factors))
    found = formatted(found, PLAIN[kind][0], _of_ends(asked.head, kind, as_codes=as_codes))
    _check_space(file.parent, found)
    with closing(library.GGUFWriter(file, one.name)) as writer, _room_for(file):
        writer.add_name(opened.name)
        writer.add_file_type(library.LlamaFileType[PLAIN[kind][1]])
        writer.add_quantization_version(library.GGML_QUANT_VERSION)
        write_sizes(
            writer, config, one, filled_sizes(layout.sizes), layout.width, layout.head_dim,
            layout.rope,
        )  # fmt: skip
        write_vocabulary(writer, layout.vocabulary)
        declared(found, writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in track(arrays(found), "writing", len(found), "tensor"):
            writer.write_tensor_data(array)
    return found


def _of_ends(head: str | None, kind: str, *, as_codes: bool) -> str:
    """The format of embedding and head: no fewer bits than 8, unless they are asked for."""
    if head is not None:
        return PLAIN[head][0]
    base = PLAIN[kind][0]
    few = BLOCKS[base][0] > 1
    return ("F16" if as_codes else "Q8_0") if few else base


@contextmanager
def _room_for(file: Path) -> Iterator[None]:
    """Numpy does not say that the disk is full; that is what it means."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error


def _namer(architecture: str, layers: int) -> Any:
    """llama.cpp's names of tensors."""
    import gguf as library

    known = next(a for a, name in library.MODEL_ARCH_NAMES.items() if name == architecture)
    names = library.get_tensor_name_map(known, layers)

    def named(name: str) -> str:
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise SecateurError(
                f"llama.cpp's {architecture} has no tensor for {name}.\nRun the model in"
                " transformers, or export it to onnx."
            )
        return str(found)

    return named


def _check_space(folder: Path, found: Sequence[Entry]) -> None:
    needed, free = sum(entry.bytes for entry in found), shutil.disk_usage(folder).free
    if needed > free:
        raise SecateurError(
            f"The file takes {size_text(needed)}, but {folder.parent} has {size_text(free)} free.\n"
            "Free some, or choose another --out."
        )


def _tell_odd(found: Sequence[Entry], kind: str) -> None:
    """Say which rows are too odd for the blocks of a format."""
    odd: dict[str, list[str]] = {}
    for entry in found:
        if len(entry.shape) > 1 and not entry.is_end:
            fits = stored_type(kind, entry.shape[-1]) or "F16"
            if fits != kind:
                odd.setdefault(fits, []).append(entry.name)
    for fits, names in odd.items():
        mlps = all(".ffn_down." in name for name in names)
        cure = (
            f". --align {ROW if kind[-1] != 'K' else 256} at pruning makes them so" if mlps else ""
        )
        note(
            f"{len(names)} tensors ({', '.join(names[:_NAMED])} ...) are {fits}, not {kind}: their"
            f" rows are no multiples of its blocks{cure}"
        )


def _write_modelfile(folder: Path, file: Path, asked: Asked) -> None:
    """What `ollama create` reads."""
    lines = [f"FROM ./{file.name}"]
    end = getattr(asked.tokenizer, "eos_token", None)
    if end and '"' not in end and "\n" not in end:
        lines.append(f'PARAMETER stop "{end}"')
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
