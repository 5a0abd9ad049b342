"""Where weights come from: a folder of safetensors, or a live module. One tensor at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import SecateurError
from ..parsing import parse_json, read_text
from .config_shape import check_shape
from .files import INDEX, SINGLE, chosen_file, distributed_file, listed_files, pickles
from .view import TensorSpec, View, held

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def folder_view(folder: Path) -> View:
    """The weights that transformers would read in a folder: see `weight_files`.

    What is read lies in memory of its own (it is no view of the memory-mapped file).

    Raises:
        SecateurError: no safetensors, a shard missing or truncated, an unknown dtype.
    """
    paths, chosen = weight_files(folder)
    files: dict[str, Path] = {}
    specs: dict[str, TensorSpec] = {}
    twice: dict[str, list[str]] = {}
    for path in paths:
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                if name in files:
                    twice.setdefault(name, [files[name].name]).append(path.name)
                files[name] = path
                dtype = _dtype(part.get_dtype(), name, path)
                specs[name] = TensorSpec(tuple(part.get_shape()), dtype)

    def read(name: str) -> Tensor:
        with _open(files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor.clone()

    def rows(name: str, start: int, stop: int) -> Tensor:
        with _open(files[name]) as file:
            tensor: Tensor = file.get_slice(name)[start:stop]
            return tensor.clone()

    notes = (*_unread(folder, chosen), *_twice_told(twice))
    return View(specs, read, read_rows=rows, notes=notes)


def module_view(module: nn.Module) -> View:
    """The weights of a module in memory; tied tensors appear under their first name only."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor
    return held(tensors)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SecateurError: missing, unreadable, or not a JSON object.
    """
    value = parse_json(
        read_text(path),
        lambda why: SecateurError(f"{path} is not JSON: {why}. Download or export it again."),
    )
    if not isinstance(value, dict):
        raise SecateurError(f"{path} does not hold a JSON object. Download or export it again.")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a checkpoint folder.

    Raises:
        SecateurError: no such folder, no config in it, or not JSON.
    """
    if not folder.exists():
        raise SecateurError(
            f"No such model folder: {folder}.\nGive a folder with config.json and *.safetensors,"
            " or the name of a model on the Hugging Face hub."
        )
    if not (folder / "config.json").is_file():
        raise SecateurError(
            f"{folder} is not a model folder: it has no config.json.\n"
            "Give the folder that save_pretrained wrote or that the hub downloads."
        )
    raw = read_json(folder / "config.json")
    check_shape(raw, str(folder / "config.json"))
    return raw


def weight_files(folder: Path) -> tuple[list[Path], str]:
    """The files of `folder` that hold the weights, and the name that led to them.

    Raises:
        SecateurError: there are none, or not all that an index lists.
    """
    config = read_config(folder)
    chosen = chosen_file(_Names(folder), config, str(folder))
    distributed = distributed_file(path.name for path in folder.iterdir())
    if distributed is not None:
        raise SecateurError(
            f"{folder} is a checkpoint of distributed training ({distributed}).\n"
            "Write it whole: load it with transformers, then model.save_pretrained(FOLDER)."
        )
    if chosen is None:
        raise _no_weights(folder)
    if not chosen.endswith(".json"):
        return [folder / chosen], chosen
    names = listed_files(read_json(folder / chosen), str(folder / chosen))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise SecateurError(
            f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0]}."
            " Download the model again."
        )
    return [folder / name for name in names], chosen


class _Names:
    """The names of the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, name: object) -> bool:
        return (self._folder / str(name)).is_file()


def _no_weights(folder: Path) -> SecateurError:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return pickles(str(folder))
    return SecateurError(
        f"{folder} has no weights: expected {SINGLE} or {INDEX}. Download the model again."
    )


def _unread(folder: Path, chosen: str) -> Iterator[str]:
    """A word about weights that are not read because others come before them."""
    if chosen == SINGLE and (folder / INDEX).is_file():
        yield (
            f"{folder} has {SINGLE} and an index of shards: the weights are those of {SINGLE}, as"
            " transformers reads them"
        )


def _twice_told(twice: Mapping[str, list[str]]) -> Iterator[str]:
    """A word about tensors that lie in several files."""
    if twice:
        name, files = next(iter(twice.items()))
        yield (
            f"tensors that lie in more than one file: {len(twice):,}, first {name} in"
            f" {' and '.join(files)}; the last of these is read, as transformers reads it"
        )


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        _refuse_unreadable(path)  # safetensors says of it that there is no such file
        raise SecateurError(
            f"{path} is truncated or corrupt ({_reason(error)}). Download it again."
        ) from error


def _refuse_unreadable(path: Path) -> None:
    """The system's word for it, if it does not let us read the file."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise SecateurError(f"Cannot read {path}: {error.strerror}.") from error


def _dtype(name: str, tensor: str, path: Path) -> torch.dtype:
    if name not in DTYPES:
        raise SecateurError(
            f"{path.name}: tensor {tensor} has dtype {name}, which is not supported; prune the"
            " floating-point model and quantise the result."
        )
    return DTYPES[name]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0].rstrip(".")
