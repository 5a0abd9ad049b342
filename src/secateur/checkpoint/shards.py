"""Writing safetensors shard by shard, so that only one shard is ever in memory."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..memory import give_back
from .files import INDEX, SINGLE
from .view import TensorSpec

# Big enough that a 7B model has some fifty files, small enough that a shard in memory does not
# count beside a decoder layer.
SHARD_BYTES = 256 * 2**20


def write_shards(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    tensor: Callable[[str], Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write the tensors that `specs` names, asking `tensor` for one after the other.

    Returns the bytes of the weight files. Files are `model.safetensors`, or numbered shards with
    `model.safetensors.index.json` where there is more than one; none is larger than `shard_bytes`
    unless a single tensor is.
    """
    groups = _group(specs, shard_bytes)
    total = 0
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = SINGLE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        shard = {name: tensor(name).contiguous() for name in names}
        _save(shard, folder / file)
        del shard
        give_back()
        total += (folder / file).stat().st_size
        weight_map.update(dict.fromkeys(names, file))
    if len(groups) > 1:
        index = {
            "metadata": {"total_size": sum(spec.bytes for spec in specs.values())},
            "weight_map": weight_map,
        }
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return total


def _save(shard: dict[str, Tensor], path: Path) -> None:
    """Write one file; what the operating system says against it comes as an OSError."""
    try:
        save_file(shard, path, metadata={"format": "pt"})
    except SafetensorError as error:  # it has the errno in its text alone
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    # safetensors goes by way of a temporary file that only its owner may read.
    path.chmod(path.parent.stat().st_mode & 0o666)


def _group(specs: Mapping[str, TensorSpec], limit: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if groups[-1] and size + spec.bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += spec.bytes
    return groups
