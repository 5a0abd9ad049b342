"""config.json of a model: whether it describes a decoder, and transformers' reading of it."""

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..checkpoint import read_config
from ..errors import SecateurError
from .adapters import Adapter
from .families import FAMILIES
from .inputs import is_multimodal
from .registration import register_form


def described(folder: Path, source: str) -> tuple[dict[str, Any], Any]:
    """config.json of a decoder (or of what has one inside), and transformers' reading of it.

    Raises:
        SecateurError: it is of no such model, of an unknown family, or makes no sense.
    """
    raw = read_config(folder)
    register_form(raw)
    # It names the source's files; what is written has others.
    own = {key: value for key, value in raw.items() if key != "transformers_weights"}
    if _may_be_multimodal(raw):
        config = _config(folder, raw)
        if is_multimodal(config):
            return own, config
    check_decoder(raw, source)
    config = _config(folder, raw)
    check_causal(config, source)
    return own, config


def _may_be_multimodal(raw: Mapping[str, Any]) -> bool:
    """Whether transformers knows a config of this kind with another one inside."""
    from transformers import CONFIG_MAPPING

    model_type = str(raw.get("model_type"))
    known = model_type in CONFIG_MAPPING
    return known and bool(getattr(CONFIG_MAPPING[model_type], "sub_configs", None))


def check_decoder(raw: Mapping[str, Any], source: str) -> None:
    """Make sure that config.json is, as far as it says, of a decoder alone.

    Raises:
        SecateurError: it names encoders, or no class that generates.
    """
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


def check_causal(config: Any, source: str) -> None:
    """Make sure of it by what config.json does not say itself, and the family's defaults do.

    Raises:
        SecateurError: as `check_decoder`.
    """
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


def adapted_config(
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


def unpacked_config(raw: Mapping[str, Any], config: Any) -> tuple[dict[str, Any], Any]:
    """config.json and its reading without a word of packed linears."""
    plain = {key: value for key, value in raw.items() if key != "packed"}
    return plain, type(config).from_dict(copy.deepcopy(plain))


def _senseless(config: str, error: Exception) -> SecateurError:
    reason = " ".join(str(error).split())[:300]
    return SecateurError(
        f"{config} does not make sense: {reason}\nDownload or export the model again."
    )
