"""Baichuan-7B and Baichuan2-7B are llamas with q, k and v in one tensor: read them as such.

`W_pack` [3 * hidden, hidden] holds the rows of q, k and v one after the other. Baichuan2 divides
each row of `lm_head` by its length in every forward, which is done here once. The 13B models bias
their attention by distance (ALiBi) where the 7B ones rotate q and k; no llama does that.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import TensorSpec, View, only, read_json, together
from ..errors import SecateurError

_PACKED = ".self_attn.W_pack.weight"
_PARTS = tuple(f".self_attn.{letter}_proj.weight" for letter in "qkv")
_HEAD = "lm_head.weight"

# The code of the first 7B model spells its class so, that of all others "Baichuan".
_FIRST = "BaiChuanForCausalLM"
_FIRST_VOCABULARY, _SECOND_VOCABULARY = 64000, 125696
_HIDDEN_13B, _HEADS_13B = 5120, 40

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
# What means the same in both, with the values of Baichuan's code where config.json is silent.
_SHARED: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_cache": True,
}

# Latin, digits, Chinese, accents, a new line: enough to see a prefix or a split that differs.
_PROBE = "The gardener cuts 20 of 175 branches, then rests.\n园丁剪了 20 根树枝 (à café)."


def llama_config(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The config.json of the llama that computes the same.

    Raises:
        SecateurError: a Baichuan that is no llama, or one that cannot be told for sure.
    """
    missing = [name for name in _SIZES if not isinstance(raw.get(name), int)]
    if missing:
        raise SecateurError(
            f"{source}/config.json does not make sense: it gives no number for {missing[0]}.\n"
            "Download or export the model again."
        )
    context = _context(raw, source)
    _normalises_head(raw, source)
    config = {name: raw[name] for name in _SIZES}
    config |= {name: raw.get(name, value) for name, value in _SHARED.items()}
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "max_position_embeddings": context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_key_value_heads": raw["num_attention_heads"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    return config | {"dtype": dtype} if dtype else config


def llama_view(view: View, raw: Mapping[str, Any], source: str) -> View:
    """The weights of a Baichuan under a llama's names; q, k and v are read by their rows alone.

    Raises:
        SecateurError: a `W_pack` is not three times as high as wide.
    """
    hidden = raw["hidden_size"]
    places: dict[str, tuple[str, int]] = {}
    specs: dict[str, TensorSpec] = {}
    for name, spec in view.specs.items():
        if not name.endswith(_PACKED):
            continue
        if spec.shape != (3 * hidden, hidden):
            raise SecateurError(
                f"{source}: tensor {name} has shape {list(spec.shape)}, expected"
                f" {[3 * hidden, hidden]} (the rows of q, k and v). The config and the weights"
                " do not belong together."
            )
        for number, part in enumerate(_PARTS):
            own = name.removesuffix(_PACKED) + part
            places[own] = (name, number * hidden)
            specs[own] = TensorSpec((hidden, hidden), spec.dtype)

    def rows(name: str, start: int, stop: int) -> Tensor:
        packed, first = places[name]
        return view.rows(packed, first + start, first + stop)

    parts = View(specs, lambda name: rows(name, 0, hidden), read_rows=rows)
    both = together(view, parts)
    plain = only(both, (name for name in both.specs if not name.endswith(_PACKED)))
    if not _normalises_head(raw, source) or _HEAD not in plain.specs:
        return plain
    return together(
        plain,
        View(
            {_HEAD: plain.specs[_HEAD]},
            lambda name: _normalised(plain.tensor(name)),
            lambda name: _normalised(plain.head(name)),
        ),
    )


def _normalised(tensor: Tensor) -> Tensor:
    exact = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return torch.nn.functional.normalize(exact, dim=1).to(tensor.dtype)


def tokenizer(folder: Path) -> Any:
    """The tokenizer of the folder without the code that comes with it.

    Its own class in transformers or tokenizer.json, where there is one; else tokenizer.model in
    LlamaTokenizer, if that gives the ids that sentencepiece gives.

    Raises:
        SecateurError: sentencepiece is not installed, or the ids differ.
    """
    import transformers

    file = folder / "tokenizer_config.json"
    settings = read_json(file) if file.is_file() else {}
    known = getattr(transformers, str(settings.get("tokenizer_class")), None)
    if known is None and (folder / "tokenizer.json").is_file():
        known = transformers.PreTrainedTokenizerFast
    found = (
        _from_sentencepiece(folder, settings) if known is None else known.from_pretrained(folder)
    )
    found.init_kwargs.pop("auto_map", None)  # the code it names is not needed any more
    return found


def _context(raw: Mapping[str, Any], source: str) -> int:
    """The longest window; refuse a model that does not rotate.

    A model with rotary embeddings states `max_position_embeddings`; those with ALiBi have
    `model_max_length` alone.
    """
    names = ["max_position_embeddings"]
    if _FIRST in _architectures(raw):
        names.append("model_max_length")
    context = next((raw[name] for name in names if isinstance(raw.get(name), int)), None)
    size = (raw["hidden_size"], raw["num_attention_heads"])
    if size[0] == _HIDDEN_13B or size[1] == _HEADS_13B or context is None:
        lacks = "" if context is not None else ", no max_position_embeddings"
        raise SecateurError(
            f"{source} has the config of Baichuan-13B (hidden_size {size[0]}, {size[1]} heads"
            f"{lacks}): it uses ALiBi, which no llama does.\n"
            "Expected Baichuan-7B or Baichuan2-7B, whose embeddings are rotary: give one of those."
        )
    return int(context)


def _normalises_head(raw: Mapping[str, Any], source: str) -> bool:
    """Whether the rows of `lm_head` are divided by their lengths: Baichuan2, by its vocabulary."""
    vocabulary = raw["vocab_size"]
    if vocabulary == _SECOND_VOCABULARY:
        if raw.get("tie_word_embeddings"):
            raise SecateurError(
                f"{source} is a Baichuan2 that ties its embeddings, and no llama has a normalised"
                " head on those.\nExpected tie_word_embeddings false, as in Baichuan2-7B."
            )
        return True
    if "z_loss_weight" in raw or (
        vocabulary != _FIRST_VOCABULARY and _FIRST not in _architectures(raw)
    ):
        raise SecateurError(
            f"{source} has a vocabulary of {vocabulary}, so it cannot be told whether it is"
            f" Baichuan-7B ({_FIRST_VOCABULARY}) or Baichuan2-7B ({_SECOND_VOCABULARY}).\n"
            f'If it is Baichuan-7B, write architectures ["{_FIRST}"] into config.json and leave'
            " out z_loss_weight."
        )
    return False


def _architectures(raw: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in raw.get("architectures") or []]


def _from_sentencepiece(folder: Path, settings: Mapping[str, Any]) -> Any:
    missing = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
    if missing:
        raise SecateurError(
            f"The tokenizer in {folder} is a sentencepiece model, and reading that needs two more"
            " packages.\nType: pip install sentencepiece protobuf"
        )
    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer

    wanted = SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(_PROBE)
    # Baichuan's own class adds neither unless it is told to.
    ends = {name: settings.get(name, False) for name in ("add_bos_token", "add_eos_token")}
    for prefix in (False, True):
        found = LlamaTokenizer.from_pretrained(folder, add_prefix_space=prefix, **ends)
        if found.encode(_PROBE, add_special_tokens=False) == wanted:
            return found
    raise SecateurError(
        f"{folder}/tokenizer.model gives other tokens in transformers than in sentencepiece.\n"
        "Expected a tokenizer.json beside it: put one there, or pass tokenizer=... in Python."
    )


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package
        return False
