"""What a config.json must look like before anything is built from it.

transformers takes most values as they are, and builds lists as long as there are layers: a billion
of them, and a machine is out of memory before anybody complains.
"""

import re
from collections.abc import Mapping
from typing import Any

from ..errors import SecateurError

# Keys by the kind that they must be of, where they are there.
_KINDS: dict[str, tuple[type, str]] = {
    "architectures": (list, "a list of names"),
    "auto_map": (dict, "an object"),
    "packed": (dict, "an object"),
    "model_type": (str, "a text"),
}
# Numbers of layers, heads and experts in the names that families have for them. Widths of heads
# (head_dim, rotary_dim) are bounded with them: tables of that width are built whole.
_COUNT = re.compile(r"(num|n)_.*(layer|head|expert|block)s?\w*")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Widths of layers and of the vocabulary.
_WIDTH = re.compile(r"size|inner|embd|hidden|ffn|intermediate")
_WIDEST = 2**24
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_MOST_LAYERS, _MOST = 1000, 2**20


def check_shape(raw: Mapping[str, Any], where: str) -> None:
    """Make sure that the values of config.json are of the kinds and sizes that a model can have.

    Raises:
        SecateurError: one is not; `where` names the file.
    """
    for key, (kind, words) in _KINDS.items():
        if raw.get(key) is not None and not isinstance(raw[key], kind):
            raise _senseless(where, key, raw[key], words)
    names = raw.get("architectures") or []
    if not all(isinstance(name, str) for name in names):
        raise _senseless(where, "architectures", names, "a list of names")
    _check_tables(raw, where)
    experts = next((raw[key] for key in _EXPERTS if type(raw.get(key)) is int), None)
    asked = raw.get("num_experts_per_tok")
    if experts is not None and type(asked) is int and not 1 <= asked <= experts:
        raise _senseless(where, "num_experts_per_tok", asked, f"1 to {experts}")
    for part in (raw, *(one for one in raw.values() if isinstance(one, dict))):
        for key, value in part.items():
            _check_count(where, key, value)


def _check_tables(raw: Mapping[str, Any], where: str) -> None:
    """What `pruned_form` writes of layers and modules: an object for each of them."""
    for key in ("per_layer_config", "pruned_modules"):
        table = raw.get(key)
        if table is not None and not _is_table(table):
            raise _senseless(where, key, table, "an object of objects")
    for path, entry in (raw.get("pruned_modules") or {}).items():
        for part in ("shapes", "attributes"):
            if not isinstance(entry.get(part, {}), dict):
                raise _senseless(where, f"{part} of {path}", entry[part], "an object")


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, dict) for one in value.values())


def _check_count(where: str, key: str, value: Any) -> None:
    if type(value) not in (int, float):
        return
    if key in _LAYERS and not 1 <= value <= _MOST_LAYERS:
        raise _senseless(where, key, value, f"1 to {_MOST_LAYERS}")
    if (_COUNT.fullmatch(key) or "dim" in key) and abs(value) > _MOST:
        raise _senseless(where, key, value, f"at most {_MOST}")
    if _WIDTH.search(key) and abs(value) > _WIDEST:
        raise _senseless(where, key, value, f"at most {_WIDEST}")


def _senseless(where: str, key: str, value: Any, expected: str) -> SecateurError:
    text = repr(value)
    return SecateurError(
        f"{where} does not make sense: {key} is {text if len(text) < 60 else text[:57] + '...'},"
        f" expected {expected}.\nDownload or export the model again."
    )
