"""Multimodal checkpoints: the text decoder inside one, opened as the causal LM that it is.

The model around it is built empty, so that transformers' own names and renamings say which tensor
is where. Some decoders have no causal LM of their own, and are another family's where all input is
text: what they add (positions in three dimensions) is then the same number three times.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...checkpoint import View
from ...errors import SecateurError
from ..streamed import empty

# Text configs without a causal LM, and whose they are where there is nothing but text.
_SAME_ON_TEXT = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
# What those families always do, and the others only if their config says so.
_ALWAYS: dict[str, dict[str, Any]] = {"qwen3_moe": {"norm_topk_prob": True}}
# What those configs say of images.
_OF_IMAGES = ("mrope_section", "mrope_interleaved")


@dataclass(frozen=True)
class Outer:
    """The model around a text decoder.

    `raw` is its config.json, in which `key` has the decoder; `skeleton` is the empty model, and
    `names` are its names of the decoder's tensors, by theirs. `text` is what config.json would say
    of the decoder alone. `weights`, under the names of `skeleton`, are None where config.json alone
    was opened.
    """

    raw: Mapping[str, Any]
    config: Any
    key: str
    skeleton: Any
    text: Mapping[str, Any]
    names: Mapping[str, str]
    weights: View | None = None

    @property
    def kind(self) -> Any:
        """Its class."""
        return type(self.skeleton)

    @property
    def architecture(self) -> str:
        """Name of its class."""
        return str(self.kind.__name__)

    def with_text(self, changed: Mapping[str, Any]) -> dict[str, Any]:
        """Its config.json with other values for its decoder."""
        return {**self.raw, self.key: {**(self.raw.get(self.key) or {}), **changed}}

    def empty(self, raw: Mapping[str, Any], dtype: torch.dtype) -> Any:
        """The model of another config.json, without weights."""
        return empty(self.kind, type(self.config).from_dict(dict(raw)), dtype)


def is_multimodal(config: Any) -> bool:
    """Whether `config` (as transformers reads it) has a text decoder inside."""
    inner = config.get_text_config(decoder=True)
    return inner is not config and not config.is_encoder_decoder


def outer_of(raw: Mapping[str, Any], config: Any, source: str) -> Outer:
    """The model around the text decoder of `config`, and what the decoder is alone.

    Raises:
        SecateurError: transformers has no causal LM for such a decoder.
    """
    class_ = _outer_class(raw, config, source)
    try:
        skeleton = empty(class_, copy.deepcopy(config), torch.float32)
        text = _text_config(config, skeleton, source)
        inner = _causal(text)
        names = _names(inner, skeleton)
    except SecateurError:
        raise
    except Exception as error:  # constructors divide, index, and ask for packages
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _no_causal(source, class_.__name__, reason) from error
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    for name, tensor in inner.state_dict().items():
        if shapes.get(names.get(name, "")) != tensor.shape:
            raise _no_causal(source, class_.__name__, f"its {name} is not where a causal LM has it")
    decoder = config.get_text_config(decoder=True)
    key = next((k for k in config.sub_configs if getattr(config, k) is decoder), "text_config")
    return Outer(raw, config, key, skeleton, text, names)


def _outer_class(raw: Mapping[str, Any], config: Any, source: str) -> Any:
    import transformers
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

    for name in raw.get("architectures") or []:
        found = getattr(transformers, str(name), None)
        if found is not None and getattr(found, "config_class", None) is type(config):
            return found
    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    raise _no_causal(source, str(config.model_type), "transformers has no class that generates")


def _text_config(config: Any, skeleton: Any, source: str) -> dict[str, Any]:
    """What config.json would say of the decoder alone."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    text = config.get_text_config(decoder=True)
    raw = {key: value for key, value in text.to_dict().items() if not key.startswith("_")}
    head = {n for n, m in skeleton.named_modules() if m is skeleton.get_output_embeddings()}
    tied = getattr(skeleton, "all_tied_weights_keys", None) or {}
    raw["tie_word_embeddings"] = any(name.rpartition(".")[0] in head for name in tied)
    if raw.get("dtype") is None:
        raw["dtype"] = config.to_dict().get("dtype")
    known = type(text) in MODEL_FOR_CAUSAL_LM_MAPPING
    model_type = text.model_type if known else _SAME_ON_TEXT.get(text.model_type)
    if model_type is None:
        raise _no_causal(
            source, type(skeleton).__name__, f"{text.model_type} has no ...ForCausalLM"
        )
    if not known:
        raw = _on_text(raw, model_type)
    return raw


def _on_text(raw: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The config of the family that computes the same on text."""
    rope = raw.get("rope_parameters") or {}
    plain = {key: value for key, value in rope.items() if key not in _OF_IMAGES}
    if plain.get("rope_type") == "mrope":
        plain["rope_type"] = "default"
    return {
        **raw,
        "model_type": model_type,
        "rope_parameters": plain,
        **_ALWAYS.get(model_type, {}),
    }


def _causal(text: dict[str, Any]) -> Any:
    """The empty causal LM; `text` learns what its class is called."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    config = CONFIG_MAPPING[text["model_type"]].from_dict(dict(text))
    class_ = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    text["architectures"] = [class_.__name__]
    return empty(class_, config, torch.float32)


def _names(inner: Any, skeleton: Any) -> dict[str, str]:
    """By name in the decoder alone, the name in the model around it.

    The two have in common what lies beside the embeddings; their heads are named apart.
    """
    here, there = (_path(m, m.get_input_embeddings()).rpartition(".")[0] for m in (inner, skeleton))
    heads = [_path(m, m.get_output_embeddings()) for m in (inner, skeleton)]
    names = {}
    for name in inner.state_dict():
        module, _, last = name.rpartition(".")
        if module == heads[0]:
            names[name] = f"{heads[1]}.{last}"
        elif name.startswith(f"{here}."):
            names[name] = there + name.removeprefix(here)
    return names


def _path(model: Any, module: Any) -> str:
    return next(path for path, found in model.named_modules() if found is module)


def _no_causal(source: str, class_: str, why: str) -> SecateurError:
    return SecateurError(
        f"{source} is multimodal ({class_}), and its text decoder cannot be opened alone: {why}.\n"
        "Save the decoder as a model of its own with the code of its authors, and give that folder."
    )
