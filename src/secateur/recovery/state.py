"""The state of an unfinished training: a safetensors file, and one more with the best parameters.

    PATH                  parameters now, Adam's moments; its values name the file of the best
    PATH.best-TOKEN       the best parameters, written when they change and not at every save
    PATH.steps-MARK       of a training of so many minutes: how many steps those are

Each is written under another name and renamed, so that it is whole or not there; the best is there
before the state that names it, and the one before goes after that. Parameters that are the best by
themselves are written once.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoint import OnDemand, header, token
from ..errors import SecateurError
from ..parsing import parse_json

# Part of every fingerprint: a state of another format is that of another run.
STATE_FORMAT = "4"


class Spread(OnDemand):
    """Tensors of which each rank has a part: all ranks ask for one at once, and get it whole.

    `like` are tensors without memory that have their shapes and dtypes.
    """

    def __init__(self, like: Mapping[str, Tensor], make: Callable[[str], Tensor]) -> None:
        super().__init__(like, make)
        self.like = like


@dataclass(frozen=True)
class State:
    """Tensors by name, and everything else as JSON has it."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


def write_state(path: Path, state: State, fingerprint: str, place: Path | None = None) -> None:
    """Write `state`, one tensor after the other; `fingerprint` says which run it belongs to.

    With `place` it is a part of the state `path` that lies there, beside it. All that is spread
    over ranks is asked for, whatever goes wrong: the others are at it.

    Raises:
        SecateurError: the place cannot be written to.
    """
    names = iter(state.tensors)
    about = {"fingerprint": fingerprint, "values": json.dumps(dict(state.values))}
    partial = path.with_name(f"{path.name}.partial-{token()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(header(like(state.tensors), about))
            for name in names:  # of those on a GPU one is here at a time
                data = state.tensors[name].detach().cpu().contiguous().flatten()
                file.write(data.view(torch.uint8).numpy().data)
        partial.replace(place or path)
    except OSError as error:
        reason = error.strerror or error
        gather(state.tensors, names)
        raise SecateurError(
            f"Cannot keep the state of training in {path.parent}: {reason}."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def like(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of the same shapes and dtypes, of which nothing need be there."""
    return tensors.like if isinstance(tensors, Spread) else tensors


def gather(tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Take part in what other ranks ask for, if anything is spread over them."""
    for name in names if isinstance(tensors, Spread) else ():
        tensors[name]


def best_file(path: Path, mark: str) -> Path:
    """Where the best parameters of the state `path` are that has `mark` as the best."""
    return path.with_name(f"{path.name}.best-{mark}")


def steps_file(path: Path, fingerprint: str) -> Path:
    """Where the number of steps is that minutes turned out to be, in the training `fingerprint`."""
    return path.with_name(f"{path.name}.steps-{fingerprint[:8]}")


def best_files(path: Path) -> Iterator[Path]:
    """All files of best parameters beside the state `path`."""
    if path.parent.is_dir():
        prefix = best_file(path, "").name
        yield from (entry for entry in path.parent.iterdir() if entry.name.startswith(prefix))


def forget(path: Path) -> None:
    """Remove the state `path` and the best parameters beside it."""
    path.unlink(missing_ok=True)
    for best in best_files(path):
        best.unlink(missing_ok=True)


def forget_other(path: Path, fingerprint: str) -> None:
    """Remove a state that is damaged or belongs to another run than that of `fingerprint`."""
    try:
        read_state(path, fingerprint)
    except SecateurError:
        forget(path)


def damaged(path: Path) -> SecateurError:
    """What to say of a state that does not hold what a training needs to go on."""
    return SecateurError(
        f"{path} is no state of a training, or damaged.\nAdd --force to begin anew."
    )


def read_state(path: Path, fingerprint: str) -> State | None:
    """The state in `path`, its tensors read when they are asked for; None if there is no such file.

    Raises:
        SecateurError: it is of another run, or damaged.
    """
    if not path.is_file():
        return None
    about, tensors = _opened(path, path)
    values = parse_json(about.get("values", ""), lambda why: damaged(path))
    if not isinstance(values, dict):
        raise damaged(path)
    if about.get("fingerprint") != fingerprint:
        raise SecateurError(
            f"{path} is the state of an unfinished training with other settings, data or weights."
            "\nRepeat that command to go on, or add --force to begin anew."
        )
    if isinstance(mark := values.get("best"), str) and "/" not in mark:
        own, best = _opened(best_file(path, mark), path)
        if own.get("fingerprint") != fingerprint:
            raise damaged(path)
        everything = {**dict.fromkeys(tensors, tensors), **dict.fromkeys(best, best)}
        return State(OnDemand(everything, lambda name: everything[name][name]), values)
    return State(tensors, values)


def _opened(path: Path, state: Path) -> tuple[dict[str, str], Mapping[str, Tensor]]:
    """The metadata of a file and its tensors; what is wrong with it is so with `state`."""

    def read(name: str) -> Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name).clone()  # the file goes
        except (OSError, SafetensorError) as error:
            raise damaged(state) from error
        return tensor

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, OnDemand(list(file.keys()), read)
    except (OSError, SafetensorError) as error:
        raise damaged(state) from error
