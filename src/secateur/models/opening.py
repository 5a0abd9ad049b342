"""Opening a model: a folder, a hub name or a live module become config, weights and layout."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arguments import a_flag, a_model, a_word, optional, public
from ..checkpoint import (
    Packed,
    View,
    folder_view,
    module_view,
    packed_linears,
    read_config,
    renamed,
    unpacked_view,
)
from ..errors import SecateurError
from .adapters import ADAPTERS, Adapter
from .configs import adapted_config, check_causal, check_decoder, described, unpacked_config
from .conversion import converted
from .discovery import undeclared_family
from .families import Family, layout_for
from .fitted import expected, fitted, stored_apart, tied_names
from .hub import local_folder
from .inputs import (
    Gguf,
    adapter_in,
    base_of,
    check_live,
    dequantised,
    gguf_file,
    has_tokenizer,
    holds_floats,
    is_multimodal,
    merged_view,
    outer_of,
    scheme_of,
    tokenizer_of,
    without_quantisation,
)
from .opened import OpenModel
from .registration import register, register_classes
from .spelling import both_spellings
from .streamed import empty_model

# The source of a model that was never in a folder.
LIVE = "live module"

_NO_FAMILY = Family("", "", "", ())
_UNTIED = {"tie_word_embeddings": False}


@public(
    model=a_model,
    revision=optional(a_word),
    merge_adapter=optional(a_flag),
    dequantise=a_flag,
    text_only=a_flag,
)
def open_model(
    model: str | PathLike[str] | nn.Module,
    *,
    revision: str | None = None,
    merge_adapter: bool | None = None,
    dequantise: bool = False,
    text_only: bool = False,
) -> OpenModel:
    """Open a checkpoint folder, a model of the Hugging Face hub by name, or a live module.

    A folder may have a GGUF file in place of safetensors (or `model` be one), an adapter that
    `merge_adapter` merges into its base, quantised weights that `dequantise` reads as floating
    point, or a multimodal model, whose text decoder is opened; `text_only` forgets the rest of it.

    Raises:
        SecateurError: no such model, not a causal LM, an unsupported family, weights missing,
            corrupt, quantised or of other shapes than the config says.
        ArgumentError: neither a path, a name nor a module.
    """
    register()
    if isinstance(model, nn.Module):
        opened = _live(model)
    else:
        source = fspath(model)
        place = local_folder(source, revision)
        if (file := gguf_file(place)) is not None:
            opened = _from_gguf(file, source)
        elif adapter_in(place, merge_adapter):
            opened = _with_adapter(place, source, dequantise=dequantise)
        else:
            opened = _from_folder(place, source, dequantise=dequantise)
            if (place / "adapter_config.json").is_file():
                opened = replace(opened, made="without its adapter")
    if text_only and opened.around is not None:
        made = f"{opened.made}, those of the text decoder alone".lstrip(", ")
        return replace(opened, around=None, made=made)
    return opened


def _live(model: nn.Module) -> OpenModel:
    check_live(model)
    config: Any = copy.deepcopy(model.config)
    config.dtype = getattr(model, "dtype", None)  # what it is by now, as save_pretrained
    raw = config.to_dict()
    for key in ("transformers_weights", "_name_or_path"):  # of the place that it came from
        raw.pop(key, None)
    if holds_floats(model):  # what was dequantised still has a word of it in its config
        raw = without_quantisation(raw)
    elif raw.get("quantization_config"):
        raise SecateurError(
            "The module is quantised; load it in floating point (or call its dequantize()) and"
            " quantise the result."
        )
    if not is_multimodal(config):
        check_decoder(raw, LIVE)
    return _opened(LIVE, None, raw, config, module_view(model))


def _from_folder(folder: Path, source: str, *, dequantise: bool) -> OpenModel:
    raw = read_config(folder)
    adapter = ADAPTERS.get(str(raw.get("model_type")))
    if adapter is not None:
        check_decoder(raw, source)
        weights = folder_view(folder)
        if (scheme := scheme_of(raw, folder, weights.specs)) is not None:
            raise SecateurError(
                f"{source} is quantised ({scheme.name}), and a {raw['model_type']} is not"
                " dequantised.\nPrune the floating-point model and quantise the result."
            )
        own, config = adapted_config(adapter, folder, raw, source)
        weights = adapter.weights(weights, raw, source)
        return _opened(source, folder, own, config, weights, adapter)
    raw, config = described(folder, source)
    weights = folder_view(folder)
    scheme = scheme_of(raw, folder, weights.specs)
    if scheme is not None:
        weights = dequantised(weights, scheme, raw, source, wanted=dequantise)
        raw = without_quantisation(raw)
        config = type(config).from_dict(copy.deepcopy(raw))
    codes: Mapping[str, Callable[[], Packed]] = {}
    if raw.get("packed"):
        dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
        stored, weights = weights, unpacked_view(weights, raw["packed"], dtype)
        codes = packed_linears(stored, raw["packed"])
        raw, config = unpacked_config(raw, config)
    opened = _opened(source, folder, raw, config, weights)
    made = "" if scheme is None else f"dequantised from {scheme.name}"
    return replace(opened, codes=codes, made=made)


def _opened_inside(
    source: str, folder: Path | None, raw: Mapping[str, Any], config: Any, weights: View
) -> OpenModel:
    """The text decoder inside a multimodal model; of a view of nothing, what its config says."""
    from transformers import CONFIG_MAPPING

    outer = outer_of(raw, config, source)
    if weights.read is not None:
        held, tied, apart = _held(weights, outer.skeleton)
        if apart:
            raw = {**outer.with_text(_UNTIED), **_UNTIED}
            outer = outer_of(raw, type(config).from_dict(copy.deepcopy(raw)), source)
        weights = fitted(held, outer.skeleton, source, tied)
        outer = replace(outer, weights=weights)
        inside = {name: there for name, there in outer.names.items() if there in weights.specs}
        weights = renamed(weights, inside)
    own = dict(outer.text)
    text = CONFIG_MAPPING[own["model_type"]].from_dict(dict(own))
    return replace(_opened(source, folder, own, text, weights), around=outer)


def _from_gguf(file: Path, source: str) -> OpenModel:
    read = Gguf(file)
    check_decoder(read.raw, source)
    check_causal(read.config, source)
    skeleton = empty_model(read.config, read.config.dtype)
    opened = _opened(source, file, read.raw, read.config, read.weights(skeleton))
    beside = file.parent if has_tokenizer(file.parent) else None
    if Path(source).expanduser() != file:  # a folder that was named: all in it belongs to it
        opened = replace(opened, folder=file.parent)
    own = read.tokenizer if beside is None or opened.folder == file else None
    return replace(opened, made="dequantised from GGUF", own_tokenizer=own)


def _with_adapter(place: Path, source: str, *, dequantise: bool) -> OpenModel:
    """The base of the adapter in `place`, with the adapter merged."""
    name = base_of(place)
    base = (
        _from_folder(place, source, dequantise=dequantise)
        if name == str(place)
        else open_model(name, dequantise=dequantise)
    )
    if base.around is not None:
        raise SecateurError(
            f"{source} is an adapter to a multimodal model.\nMerge it with peft"
            " (merge_and_unload), save that, and give the folder."
        )
    own = base.own_tokenizer
    if has_tokenizer(place) and place != base.folder:
        own = partial(tokenizer_of, place)
    read = tuple(path for path in (place, *base.read) if path != base.folder)
    merged = merged_view(base.weights, base.skeleton, place)
    made = f"{base.made}, merged with its adapter".lstrip(", ")
    base = replace(base, weights=merged, codes={}, made=made)  # few bits hold the base alone
    return replace(base, source=source, read=read, own_tokenizer=own)


def open_config(model: str | PathLike[str]) -> OpenModel:
    """Open the config.json of a folder or of a model of the hub, and no weights.

    The structures are those of the whole model; the fingerprint of its weights is empty.

    Raises:
        SecateurError: as `open_model`.
    """
    register()
    source = fspath(model)
    folder = local_folder(source, config_only=True)
    if gguf_file(folder) is not None or (folder / "adapter_config.json").is_file():
        return open_model(model, merge_adapter=True)
    if str(read_config(folder).get("model_type")) in ADAPTERS:
        return open_model(model)
    raw, config = described(folder, source)
    if raw.get("quantization_config"):
        raw = without_quantisation(raw)
        config = type(config).from_dict(copy.deepcopy(raw))
    if raw.get("packed"):
        raw, config = unpacked_config(raw, config)
    return _opened(source, folder, raw, config, View({}))


def _opened(
    source: str,
    folder: Path | None,
    raw: Mapping[str, Any],
    config: Any,
    weights: View,
    adapter: Adapter | None = None,
) -> OpenModel:
    """What `weights` hold of a model; of a multimodal one, the text decoder inside."""
    if is_multimodal(config):
        return _opened_inside(source, folder, raw, config, weights)
    raw = both_spellings(raw, config)
    # what the config's own class says: several names may share a family's code
    model_type = str(type(config).model_type).removeprefix("secateur_")
    declared = layout_for(model_type, config.to_dict())
    # The place of the layers is not known yet, and the skeleton does not depend on it.
    opened = OpenModel(source, folder, raw, config, weights, declared or _NO_FAMILY)
    try:
        skeleton = opened.skeleton
    except Exception as error:  # the model's constructor divides, indexes, asserts
        raise _unbuildable(f"{source}/config.json", error) from error
    family = declared or undeclared_family(config, skeleton)
    if declared is None:
        _register(family)
    opened = replace(opened, family=family, declared=declared is not None, adapter=adapter)
    if weights.read is None:
        return replace(opened, weights=View(expected(skeleton)))
    return _with_weights(opened, weights)


def _with_weights(opened: OpenModel, weights: View) -> OpenModel:
    """The model with what `weights` hold of it; what is stored apart is not tied."""
    held, tied, apart = _held(weights, opened.skeleton)
    if apart:
        config = copy.deepcopy(opened.config)
        config.tie_word_embeddings = False
        opened = replace(opened, config=config, raw_config={**opened.raw_config, **_UNTIED})
    return replace(opened, weights=fitted(held, opened.skeleton, opened.source, tied))


def _held(weights: View, skeleton: nn.Module) -> tuple[View, Mapping[str, str], bool]:
    """What there is under the model's names, what it ties, and whether that is stored apart."""
    held, tied = converted(weights, skeleton), tied_names(skeleton)
    apart = stored_apart(held, skeleton)
    if not apart:
        return held, tied, False
    said = (
        f"config.json ties {apart[0]} to {tied[apart[0]]}, but both are stored, with different"
        " values: they are not tied, as in transformers"
    )
    return replace(held, notes=(*held.notes, said)), tied, True


def _register(family: Family) -> None:
    try:
        register_classes(family.config, family.model)
    except ValueError as error:
        raise SecateurError(
            f"{family.config} is a config of its own for another family's {family.model}, which no"
            " form of a pruned model has yet.\nConvert the checkpoint to that family first."
        ) from error


def _unbuildable(config: str, error: Exception) -> SecateurError:
    if isinstance(error, MemoryError) or "alloc" in str(error):
        return SecateurError(f"There is not enough memory to build the empty model of {config}.")
    reason = " ".join(str(error).split())[:300]
    return SecateurError(
        f"{config} does not make sense: transformers builds no model from it"
        f" ({type(error).__name__}: {reason}).\nDownload or export the model again."
    )
