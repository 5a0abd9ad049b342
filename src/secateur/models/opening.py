"""Opening a model: a folder, a hub name or a live module become config, weights and layout."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arguments import (
    a_dtype,
    a_flag,
    a_folder_or_name,
    a_model,
    a_word,
    is_panic,
    optional,
    public,
)
from ..checkpoint import (
    FolderWeights,
    ModuleWeights,
    NoWeights,
    PackedWeights,
    Weights,
    read_config,
)
from ..errors import SecateurError
from ..registry import choose
from ..structure import Structure
from .adapters import ADAPTERS, Adapter
from .conversion import converted
from .discovery import undeclared_family
from .families import FAMILIES, Family, layout_for
from .fitted import Fitted, expected, stored_apart, tied_names
from .hub import hub_name, is_hub_name, local_folder
from .inputs import (
    Gguf,
    Inside,
    Merged,
    Outer,
    adapter_in,
    base_of,
    check_live,
    check_named,
    dequantised,
    gguf_file,
    has_tokenizer,
    holds_floats,
    is_multimodal,
    outer_of,
    scheme_of,
    without_quantisation,
)
from .left import LeftWhole, left_whole
from .registration import register, register_classes, register_form
from .spelling import both_spellings
from .streamed import StreamedModel, empty_model, filled
from .structures import structure_of

# The source of a model that was never in a folder.
LIVE = "live module"


@dataclass(frozen=True)
class OpenModel:
    """A causal LM whose weights are read on demand.

    `raw_config` is config.json as it stands, `config` transformers' reading of it. `folder` is
    None for a live module. The layout of the family is `declared`, or else it was traced.
    A checkpoint that an `adapter` reads as another family's has that one's config and names; one
    whose linears are `packed` in few bits is read as the floating-point one that it stands for.
    `made` says what else was done to the weights while they were read. A decoder inside a
    multimodal model has that one `around` it. `read` are other places that something came from.
    `notes` are for the user: what of the checkpoint was read, and what was not.
    """

    source: str
    folder: Path | None
    raw_config: Mapping[str, Any]
    config: Any
    weights: Weights
    family: Family
    declared: bool = True
    adapter: Adapter | None = None
    packed: bool = False
    made: str = ""
    around: Outer | None = None
    read: tuple[Path, ...] = ()
    own_tokenizer: Callable[[], Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def hub_name(self) -> str | None:
        """What the model is called on the hub, as far as the place that it came from says so."""
        if self.folder is not None:
            return hub_name(self.folder)
        stated = str(getattr(self.config, "_name_or_path", ""))
        return stated if is_hub_name(stated) and "/" in stated else None

    @property
    def name(self) -> str:
        """What people call the model: its name on the hub, or that of its folder."""
        if self.hub_name is not None:
            return self.hub_name
        return self.source if self.folder is None else Path(self.source).resolve().name

    @property
    def companions(self) -> Path | None:
        """The folder whose other files (licence, generation config) belong to the model."""
        return self.folder if self.folder is not None and self.folder.is_dir() else None

    @property
    def writes_tokenizer(self) -> bool:
        """Whether the tokenizer files of that folder, if it has any, are not the model's."""
        return self.adapter is not None or self.own_tokenizer is not None

    @property
    def rewritten(self) -> bool:
        """Whether the tensors differ from those in any folder."""
        return self.adapter is not None or self.packed or bool(self.made)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model on the meta device, in the checkpoint's dtype."""
        return empty_model(self.config, self.dtype)

    @cached_property
    def structures(self) -> Structure:
        """The coupled structures that can be pruned, of every granularity."""
        return structure_of(self.family, self.skeleton, self.weights)

    @cached_property
    def structure(self) -> Structure:
        """The coupled structures of the default granularities."""
        return self.structures.select()

    @cached_property
    def left(self) -> tuple[LeftWhole, ...]:
        """What of the layers loses nothing, and why; nothing of a declared family."""
        if self.declared:
            return ()
        shapes = {name: spec.shape for name, spec in self.weights.specs.items()}
        return left_whole(self.family, self.structures, shapes)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the config states, or else that of the first weight (none: fp32)."""
        stated = getattr(self.config, "dtype", None)
        if isinstance(stated, torch.dtype):
            return stated
        return next((spec.dtype for spec in self.weights.specs.values()), torch.float32)

    @property
    def context(self) -> int:
        """The longest window, in tokens, that the model allows (2048 if the config says none)."""
        names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
        stated = (getattr(self.config, name, None) for name in names)
        return int(next((length for length in stated if length), 2048))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the folder.

        Raises:
            SecateurError: there is none (or the model is a live module).
        """
        if self.folder is None:
            raise SecateurError("A live model has no tokenizer: pass tokenizer=...")
        if self.own_tokenizer is None and not has_tokenizer(self.folder):
            raise SecateurError(
                f"{self.folder} has no tokenizer (tokenizer.json or tokenizer.model), and"
                " calibration text needs one.\nCopy the tokenizer files of the original model into"
                " the folder."
            )
        try:
            found = (
                self.own_tokenizer()
                if self.own_tokenizer is not None
                else _tokenizer(self.folder)
                if self.adapter is None
                else self.adapter.tokenizer(self.folder)
            )
            found("Some text.", verbose=False)  # what is wrong with it shows now, not in mid-work
        except SecateurError:
            raise
        except BaseException as error:  # tokenizers raises bare ones, and panics
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise SecateurError(
                f"The tokenizer in {self.folder} does not load:"
                f" {type(error).__name__}, {(str(error).splitlines() or [''])[0]}\n"
                "Copy the tokenizer files of the original model into the folder again."
            ) from error
        return found

    def whole(self, dtype: torch.dtype) -> Any:
        """The model with all its weights in memory, in `dtype`; packed ones as they stand for."""
        return filled(empty_model(self.config, dtype), self.weights, dtype)

    def streamed(self, *, device: str = "auto", dtype: str = "auto") -> StreamedModel:
        """The model for the streaming pass, computing in `dtype` (`auto`: its own)."""
        model = empty_model(self.config, resolve_dtype(dtype) or self.dtype)
        return StreamedModel(model, self.family, self.weights, resolve_device(device))


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
        TypeError: neither a path, a name nor a module.
    """
    register()
    check_named(model)
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
    if is_multimodal(config):
        return _opened_inside(LIVE, None, raw, config, ModuleWeights(model))
    _check_decoder(raw, LIVE)
    return _opened(LIVE, None, raw, config, ModuleWeights(model), None)


def _from_folder(folder: Path, source: str, *, dequantise: bool) -> OpenModel:
    raw = read_config(folder)
    adapter = ADAPTERS.get(str(raw.get("model_type")))
    if adapter is not None:
        _check_decoder(raw, source)
        stored = FolderWeights(folder)
        if (scheme := scheme_of(raw, folder, stored.specs)) is not None:
            raise SecateurError(
                f"{source} is quantised ({scheme.name}), and a {raw['model_type']} is not"
                " dequantised.\nPrune the floating-point model and quantise the result."
            )
        own, config = _adapted(adapter, folder, raw, source)
        opened = _opened(source, folder, own, config, adapter.weights(stored, raw, source), adapter)
        return replace(opened, notes=(*stored.notes, *opened.notes))
    raw, config = _read(folder, source)
    stored = FolderWeights(folder)
    weights: Weights = stored
    scheme = scheme_of(raw, folder, weights.specs)
    if scheme is not None:
        weights = dequantised(weights, scheme, raw, source, wanted=dequantise)
        raw = without_quantisation(raw)
        config = type(config).from_dict(copy.deepcopy(raw))
    packed = bool(raw.get("packed"))
    if packed:
        raw, config, weights = _floating(raw, config, weights)
    if is_multimodal(config):
        opened = _opened_inside(source, folder, raw, config, weights)
    else:
        opened = _opened(source, folder, raw, config, weights, None)
    made = "" if scheme is None else f"dequantised from {scheme.name}"
    notes = (*stored.notes, *opened.notes)
    return replace(opened, packed=packed, made=made, notes=notes)


def _opened_inside(
    source: str, folder: Path | None, raw: Mapping[str, Any], config: Any, weights: Weights | None
) -> OpenModel:
    """The text decoder inside a multimodal model; without weights, what its config says."""
    from transformers import CONFIG_MAPPING

    outer = outer_of(raw, config, source)
    inner: Weights = NoWeights({})
    notes: tuple[str, ...] = ()
    if weights is not None:
        held = converted(weights, outer.skeleton)
        tied, apart = tied_names(outer.skeleton), stored_apart(held, outer.skeleton)
        if apart:
            raw = {**outer.with_text(_UNTIED), **_UNTIED}
            outer = outer_of(raw, type(config).from_dict(copy.deepcopy(raw)), source)
        whole = Fitted(held, outer.skeleton, source, tied)
        notes = (*_told(held, apart, tied), *whole.notes)
        outer = replace(outer, weights=whole)
        inner = Inside(whole, outer.names)
    own = dict(outer.text)
    text = CONFIG_MAPPING[own["model_type"]].from_dict(dict(own))
    opened = _opened(source, folder, own, text, inner, None)
    return replace(opened, around=outer, notes=(*notes, *opened.notes))


def _from_gguf(file: Path, source: str) -> OpenModel:
    read = Gguf(file)
    _check_decoder(read.raw, source)
    _check_causal(read.config, source)
    skeleton = empty_model(read.config, read.config.dtype)
    opened = _opened(source, file, read.raw, read.config, read.weights(skeleton), None)
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
        own = partial(_tokenizer, place)
    read = tuple(path for path in (place, *base.read) if path != base.folder)
    merged = Merged(base.weights, base.skeleton, place)
    made = f"{base.made}, merged with its adapter".lstrip(", ")
    return replace(base, source=source, weights=merged, made=made, read=read, own_tokenizer=own)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def open_config(model: str | PathLike[str], *, revision: str | None = None) -> OpenModel:
    """Open the config.json of a folder or of a model of the hub, and no weights.

    The structures are those of the whole model; the fingerprint of its weights is empty.

    Raises:
        SecateurError: as `open_model`.
    """
    register()
    check_named(model)
    source = fspath(model)
    folder = local_folder(source, revision, config_only=True)
    if gguf_file(folder) is not None or (folder / "adapter_config.json").is_file():
        return open_model(model, revision=revision, merge_adapter=True)
    if str(read_config(folder).get("model_type")) in ADAPTERS:
        return open_model(model, revision=revision)
    raw, config = _read(folder, source)
    if raw.get("quantization_config"):
        raw = without_quantisation(raw)
        config = type(config).from_dict(copy.deepcopy(raw))
    if raw.get("packed"):
        raw, config = _unpacked(raw, config)
    if is_multimodal(config):
        return _opened_inside(source, folder, raw, config, None)
    return _opened(source, folder, raw, config, NoWeights({}), None)


def _read(folder: Path, source: str) -> tuple[dict[str, Any], Any]:
    """config.json as it stands, and transformers' reading of it."""
    raw = read_config(folder)
    register_form(raw)
    # It names the source's files; what is written has others.
    own = {key: value for key, value in raw.items() if key != "transformers_weights"}
    if _may_be_multimodal(raw):
        config = _config(folder, raw)
        if is_multimodal(config):
            return own, config
    _check_decoder(raw, source)
    config = _config(folder, raw)
    _check_causal(config, source)
    return own, config


def _may_be_multimodal(raw: Mapping[str, Any]) -> bool:
    """Whether transformers knows a config of this kind with another one inside."""
    from transformers import CONFIG_MAPPING

    model_type = str(raw.get("model_type"))
    known = model_type in CONFIG_MAPPING
    return known and bool(getattr(CONFIG_MAPPING[model_type], "sub_configs", None))


def _floating(
    raw: Mapping[str, Any], config: Any, weights: Weights
) -> tuple[dict[str, Any], Any, Weights]:
    """A model with packed linears as the one with floating-point weights that it stands for."""
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return *_unpacked(raw, config), PackedWeights(weights, raw["packed"], dtype)


def _unpacked(raw: Mapping[str, Any], config: Any) -> tuple[dict[str, Any], Any]:
    """config.json and its reading without a word of packed linears."""
    plain = {key: value for key, value in raw.items() if key != "packed"}
    return plain, type(config).from_dict(copy.deepcopy(plain))


def _opened(
    source: str,
    folder: Path | None,
    raw: Mapping[str, Any],
    config: Any,
    weights: Weights,
    adapter: Adapter | None,
) -> OpenModel:
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
    if isinstance(weights, NoWeights):
        return replace(opened, weights=NoWeights(expected(skeleton)))
    return _with_weights(opened, weights)


def _with_weights(opened: OpenModel, weights: Weights) -> OpenModel:
    """The model with what `weights` hold of it; what is stored apart is not tied."""
    held = converted(weights, opened.skeleton)
    tied, apart = tied_names(opened.skeleton), stored_apart(held, opened.skeleton)
    if apart:
        config = copy.deepcopy(opened.config)
        config.tie_word_embeddings = False
        opened = replace(opened, config=config, raw_config={**opened.raw_config, **_UNTIED})
    fitted = Fitted(held, opened.skeleton, opened.source, tied)
    return replace(opened, weights=fitted, notes=(*_told(held, apart, tied), *fitted.notes))


def _told(held: Weights, apart: Sequence[str], tied: Mapping[str, str]) -> Iterator[str]:
    """What the user should know about tensors with several names."""
    yield from getattr(held, "doubled", ())
    if apart:
        yield (
            f"config.json ties {apart[0]} to {tied[apart[0]]}, but both are stored, with different"
            " values: they are not tied, as in transformers"
        )


@public(
    folder=a_folder_or_name,
    dtype=a_dtype,
    merge_adapter=optional(a_flag),
    dequantise=a_flag,
    text_only=a_flag,
)
def load(
    folder: str | PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    merge_adapter: bool | None = None,
    dequantise: bool = False,
    text_only: bool = False,
    **kwargs: Any,
) -> Any:
    """Load a pruned (or any supported) folder as a transformers model, ready for `generate`.

    A multimodal folder gives the whole model, unless `text_only`. `kwargs` go to the class's
    `from_pretrained` (for example `device_map`).

    Raises:
        SecateurError: as `open_model`.
    """
    opened = open_model(
        folder, merge_adapter=merge_adapter, dequantise=dequantise, text_only=text_only
    )
    return loaded(opened, dtype=dtype, **kwargs)


def loaded(opened: OpenModel, *, dtype: str | torch.dtype = "auto", **kwargs: Any) -> Any:
    """The whole transformers model of what was opened, by transformers' own `from_pretrained`."""
    from transformers import AutoModelForCausalLM

    if dtype != "auto" and not isinstance(getattr(torch, str(dtype), dtype), torch.dtype):
        raise SecateurError(f"Unknown dtype {dtype!r}. Use auto, float32, bfloat16 or float16.")
    if opened.adapter is not None or opened.made:
        return _loaded_adapted(opened, dtype, kwargs)
    # The registered classes serve; code in the folder runs only if the caller says so.
    kwargs = {"trust_remote_code": False, **kwargs}
    around = opened.around
    kind: Any = AutoModelForCausalLM if around is None else around.kind
    try:
        model = kind.from_pretrained(opened.folder, dtype=dtype, **kwargs)
    except Exception as error:  # of many kinds: a file that is wrong, an argument it does not take
        reason = f"{type(error).__name__}, {' '.join(str(error).split())[:300]}"
        raise SecateurError(f"transformers does not load {opened.source}: {reason}") from error
    return model.eval()


def _check_decoder(raw: Mapping[str, Any], source: str) -> None:
    model_type = str(raw.get("model_type"))
    architectures = [str(name) for name in raw.get("architectures") or []]
    causal = not architectures or any(
        "CausalLM" in name or "LMHead" in name or name in _causal_classes()
        for name in architectures
    )
    if raw.get("is_encoder_decoder"):
        raise _no_decoder(
            source, f"{(architectures or [model_type])[0]}, an encoder with a decoder"
        )
    if not causal:
        raise _no_decoder(source, ", ".join(architectures) or model_type)


@cache
def _causal_classes() -> frozenset[str]:
    """The names of transformers' causal classes that do not say so."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    some = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    names = {name for value in some for name in ((value,) if isinstance(value, str) else value)}
    return frozenset(name for name in names if "ForConditionalGeneration" not in name)


def _check_causal(config: Any, source: str) -> None:
    """What config.json does not say itself, the defaults of the family do."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if config.is_encoder_decoder:
        raise _no_decoder(source, f"{config.model_type}, an encoder with a decoder")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _no_decoder(source, config.model_type)


def _no_decoder(source: str, what: str) -> SecateurError:
    return SecateurError(
        f"{source} is not a decoder language model: it is {what}, expected ...ForCausalLM.\n"
        f"Declared families: {', '.join(FAMILIES)}; other causal models of transformers are"
        " traced."
    )


def _config(folder: Path, raw: Mapping[str, Any]) -> Any:
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = str(raw.get("model_type") or "")
    if not model_type:
        raise SecateurError(
            f"{folder}/config.json has no model_type, so it is not clear what model this is.\n"
            "Download or export the model again."
        )
    if model_type not in CONFIG_MAPPING and not model_type.startswith("secateur_"):
        raise SecateurError(
            f"transformers {transformers.__version__} does not know the model family"
            f" {model_type!r} (code that comes with a model is not run).\n"
            "Use a model of a known family, or a newer transformers."
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # validation errors of many kinds; the cure is the same
        raise _senseless(f"{folder}/config.json", error) from error


def _adapted(
    adapter: Adapter, folder: Path, raw: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], Any]:
    """config.json and its reading, both as the adapter's family has them."""
    from transformers import CONFIG_MAPPING

    own = adapter.config(raw, source)
    try:
        config = CONFIG_MAPPING[own["model_type"]].from_dict(copy.deepcopy(own))
    except Exception as error:  # as in `_config`
        raise _senseless(f"{folder}/config.json", error) from error
    return own, config


def _loaded_adapted(opened: OpenModel, dtype: str | torch.dtype, kwargs: Mapping[str, Any]) -> Any:
    """The model of the stock class: no folder holds these tensors, so they are handed over."""
    import transformers

    whole = opened.around or opened
    assert whole.weights is not None, "what is loaded was opened with its weights"
    model_class: Any = type(whole.skeleton)
    state = {name: whole.weights.tensor(name) for name in whole.weights.specs}
    model = model_class.from_pretrained(
        None, config=whole.config, state_dict=state, dtype=dtype, **kwargs
    ).eval()
    place = opened.companions
    if place is not None and (place / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(place)
    return model


def _senseless(config: str, error: Exception) -> SecateurError:
    reason = " ".join(str(error).split())[:300]
    return SecateurError(
        f"{config} does not make sense: {reason}\nDownload or export the model again."
    )


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


def resolve_device(name: str) -> torch.device:
    """The device by name; `auto` is a CUDA device where there is one.

    Raises:
        SecateurError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SecateurError(f"Unknown device {name!r}. Use auto, cpu, cuda or cuda:1.") from error
    usable = device.type == "cpu" or (
        device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
    )
    if not usable:
        raise SecateurError(f"This machine has no device {name!r}. Use --device cpu or auto.")
    return device


def resolve_dtype(name: str) -> torch.dtype | None:
    """The dtype by name; None for `auto`."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return choose("dtype", name, {"auto": None, **dtypes})
