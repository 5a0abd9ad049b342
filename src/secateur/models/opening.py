"""Opening a model: a folder, a hub name or a live module become config, weights and layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import (
    FolderWeights,
    ModuleWeights,
    NoWeights,
    PackedWeights,
    Weights,
    read_config,
    read_json,
)
from ..errors import SecateurError
from ..registry import choose
from ..structure import Structure
from .adapters import ADAPTERS, Adapter
from .conversion import converted
from .discovery import undeclared_family
from .families import FAMILIES, Family, layout_for
from .fitted import Fitted, expected
from .left import LeftWhole, left_whole
from .registration import register, register_classes, register_form
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
        from transformers import AutoTokenizer

        if self.folder is None:
            raise SecateurError("A live model has no tokenizer: pass tokenizer=...")
        names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
        if not any((self.folder / name).is_file() for name in names):
            raise SecateurError(
                f"{self.folder} has no tokenizer ({names[0]} or {names[1]}), and calibration text"
                " needs one.\nCopy the tokenizer files of the original model into the folder."
            )
        try:
            if self.adapter is not None:
                return self.adapter.tokenizer(self.folder)
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise SecateurError(
                f"The tokenizer in {self.folder} does not load:"
                f" {type(error).__name__}, {(str(error).splitlines() or [''])[0]}\n"
                "Copy the tokenizer files of the original model into the folder again."
            ) from error

    def whole(self, dtype: torch.dtype) -> Any:
        """The model with all its weights in memory, in `dtype`; packed ones as they stand for."""
        return filled(empty_model(self.config, dtype), self.weights, dtype)

    def streamed(self, *, device: str = "auto", dtype: str = "auto") -> StreamedModel:
        """The model for the streaming pass, computing in `dtype` (`auto`: its own)."""
        model = empty_model(self.config, resolve_dtype(dtype) or self.dtype)
        return StreamedModel(model, self.family, self.weights, resolve_device(device))


_NO_FAMILY = Family("", "", "", ())


def open_model(model: str | Path | nn.Module, *, revision: str | None = None) -> OpenModel:
    """Open a checkpoint folder, a model of the Hugging Face hub by name, or a live module.

    Raises:
        SecateurError: no such model, not a causal LM, an unsupported family, weights missing,
            corrupt, quantised or of other shapes than the config says.
    """
    register()
    folder: Path | None = None
    weights: Weights
    adapter: Adapter | None = None
    packed = False
    if isinstance(model, nn.Module):
        config: Any = getattr(model, "config", None)
        raw = config.to_dict() if config is not None else {}
        source = LIVE
        _check_decoder(raw, source)
        weights = ModuleWeights(model)
    else:
        source = str(model)
        folder = _local(source, revision)
        raw = read_config(folder)
        adapter = ADAPTERS.get(str(raw.get("model_type")))
        if adapter is None:
            raw, config = _read(folder, source)
            weights = FolderWeights(folder)
            packed = bool(raw.get("packed"))
            if packed:
                raw, config, weights = _floating(raw, config, weights)
        else:
            _check_decoder(raw, source)
            raw, config, weights = _adapted(adapter, folder, raw, source)
    opened = _opened(source, folder, raw, config, weights, adapter)
    return replace(opened, packed=packed)


def open_config(model: str | Path, *, revision: str | None = None) -> OpenModel:
    """Open the config.json of a folder or of a model of the hub, and no weights.

    The structures are those of the whole model; the fingerprint of its weights is empty.

    Raises:
        SecateurError: as `open_model`.
    """
    register()
    source = str(model)
    folder = _local(source, revision, ["config.json"])
    if str(read_config(folder).get("model_type")) in ADAPTERS:
        return open_model(model, revision=revision)
    raw, config = _read(folder, source)
    if raw.get("packed"):
        raw, config = _unpacked(raw, config)
    return _opened(source, folder, raw, config, NoWeights({}), None)


def _read(folder: Path, source: str) -> tuple[dict[str, Any], Any]:
    """config.json as it stands, and transformers' reading of it."""
    raw = read_config(folder)
    _check_decoder(raw, source)
    register_form(raw)
    config = _config(folder, raw)
    _check_causal(config, source)
    return raw, config


def _floating(
    raw: Mapping[str, Any], config: Any, weights: Weights
) -> tuple[dict[str, Any], Any, Weights]:
    """A model with packed linears as the one with floating-point weights that it stands for."""
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return *_unpacked(raw, config), PackedWeights(weights, raw["packed"], dtype)


def _unpacked(raw: Mapping[str, Any], config: Any) -> tuple[dict[str, Any], Any]:
    """config.json and its reading without a word of packed linears."""
    plain = {key: value for key, value in raw.items() if key != "packed"}
    return plain, type(config).from_dict(plain)


def _opened(
    source: str,
    folder: Path | None,
    raw: Mapping[str, Any],
    config: Any,
    weights: Weights,
    adapter: Adapter | None,
) -> OpenModel:
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
    fitted: Weights
    if isinstance(weights, NoWeights):
        fitted = NoWeights(expected(skeleton))
    else:
        fitted = Fitted(converted(weights, skeleton), skeleton, source)
    known = declared is not None
    return OpenModel(source, folder, raw, config, fitted, family, known, adapter)


def load(folder: str | Path, *, dtype: str | torch.dtype = "auto", **kwargs: Any) -> Any:
    """Load a pruned (or any supported) folder as a transformers model, ready for `generate`.

    `kwargs` go to `AutoModelForCausalLM.from_pretrained` (for example `device_map`).

    Raises:
        SecateurError: as `open_model`.
    """
    from transformers import AutoModelForCausalLM

    opened = open_model(folder)
    if opened.adapter is not None:
        return _loaded_adapted(opened, dtype, kwargs)
    # The registered classes serve; code in the folder runs only if the caller says so.
    kwargs = {"trust_remote_code": False, **kwargs}
    return AutoModelForCausalLM.from_pretrained(opened.folder, dtype=dtype, **kwargs).eval()


_FILES = ("*.json", "*.safetensors", "tokenizer*", "*.model", "*.txt")


def _local(model: str, revision: str | None, files: Sequence[str] = _FILES) -> Path:
    path = Path(model).expanduser()
    looks_like_a_hub_name = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if path.exists() or not looks_like_a_hub_name:
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub raises a dozen kinds, all meaning the same to a user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SecateurError(
            f"There is no folder {model}, and the Hugging Face hub does not give it: {reason}\n"
            "Check the name, or download it first and give the folder."
        ) from error


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
    if raw.get("quantization_config"):
        raise SecateurError(
            f"{source} is quantised; prune the floating-point model and quantise the result."
        )


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

    read_json(folder / "config.json")
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
) -> tuple[dict[str, Any], Any, Weights]:
    """config.json, its reading and the weights, all as the adapter's family has them."""
    from transformers import CONFIG_MAPPING

    own = adapter.config(raw, source)
    try:
        config = CONFIG_MAPPING[own["model_type"]].from_dict(own)
    except Exception as error:  # as in `_config`
        raise _senseless(f"{folder}/config.json", error) from error
    return own, config, adapter.weights(FolderWeights(folder), raw, source)


def _loaded_adapted(opened: OpenModel, dtype: str | torch.dtype, kwargs: Mapping[str, Any]) -> Any:
    """The model of the stock class: no folder holds these tensors, so they are handed over."""
    import transformers

    model_class = getattr(transformers, opened.family.model)
    state = {name: opened.weights.tensor(name) for name in opened.weights.specs}
    model = model_class.from_pretrained(
        None, config=opened.config, state_dict=state, dtype=dtype, **kwargs
    ).eval()
    if opened.folder is not None and (opened.folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(opened.folder)
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
