"""Which files hold a model's weights: those that transformers would read, in its order.

A file that config.json names (`transformers_weights`) comes before `model.safetensors`, and that
before an index. Of an index the list of files counts: whatever they hold is read, file after file
by name, and a later one wins.
"""

import posixpath
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

from ..errors import SecateurError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What transformers writes under distributed training, and would read before anything else.
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


def chosen_file(names: Container[str], config: Mapping[str, Any], where: str) -> str | None:
    """The one of `names` that holds the weights, or lists the files that do; None: no safetensors.

    Raises:
        SecateurError: config.json names a file that cannot be it.
    """
    named = config.get("transformers_weights")
    if named is None:
        return next((name for name in (SINGLE, INDEX) if name in names), None)
    if not isinstance(named, str) or not named.endswith(
        (".safetensors", ".safetensors.index.json")
    ):
        raise SecateurError(
            f"{where}/config.json names {named!r} as transformers_weights, which is neither a"
            " safetensors file nor an index of some.\nCorrect it, or take the key out."
        )
    _check_inside(named, f"{where}/config.json")
    if named not in names:
        raise SecateurError(
            f"{where} lacks {named}, which its config.json names as transformers_weights.\n"
            "Download the model again, or take the key out."
        )
    return named


def listed_files(index: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The files that an index lists, in the order of reading.

    Raises:
        SecateurError: it lists none, or one outside of the folder, or pickles.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SecateurError(f"{where} lists no weights. Download it again.")
    if not all(isinstance(name, str) and name for name in weight_map.values()):
        raise SecateurError(f"{where} lists files without a name. Download it again.")
    files = tuple(sorted(set(weight_map.values())))
    for name in files:
        _check_inside(name, where)
    if not files[0].endswith(".safetensors"):  # transformers would take them all for pickles
        raise SecateurError(
            f"{where} lists {files[0]}, which is no .safetensors file.\nExport the model again:"
            " load it with transformers where you trust it, then model.save_pretrained(FOLDER)."
        )
    return files


def distributed_file(names: Iterable[str]) -> str | None:
    """A file of a checkpoint of distributed training, which transformers would read first."""
    return next((name for name in sorted(names) if _DISTRIBUTED.fullmatch(name)), None)


def _check_inside(name: str, where: str) -> None:
    clean = posixpath.normpath(name.replace("\\", "/"))
    if clean.startswith(("../", "/")) or clean == ".." or "\0" in name or ":" in clean[:2]:
        raise SecateurError(
            f"{where} names {name!r}, which lies outside of the model's folder.\n"
            "Weights are read from that folder alone: download the model again."
        )


def pickles(where: str) -> SecateurError:
    """Refusal of a model whose weights are pickles alone."""
    return SecateurError(
        f"{where} has its weights in pickle files (.bin, .pt), which can run code when read;"
        " safetensors are expected.\nConvert it once: load it with transformers where you trust"
        " it, then model.save_pretrained(FOLDER)."
    )
