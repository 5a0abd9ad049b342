"""The state of an unfinished training: one safetensors file, written whole or not at all."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint import token
from ..errors import SecateurError
from ..parsing import parse_json

# Part of every fingerprint: a state of another format is that of another run.
STATE_FORMAT = "2"


@dataclass(frozen=True)
class State:
    """Tensors by name, and everything else as JSON has it."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


def write_state(path: Path, state: State, fingerprint: str) -> None:
    """Write `state`; `fingerprint` says which run it belongs to.

    Raises:
        SecateurError: the place cannot be written to.
    """
    partial = path.with_name(f"{path.name}.partial-{token()}")  # safetensors' own file is in it
    about = {"fingerprint": fingerprint, "values": json.dumps(dict(state.values))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors.items()}
        partial.mkdir()
        save_file(tensors, partial / "state", metadata=about)
        (partial / "state").replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SecateurError(
            f"Cannot keep the state of training in {path.parent}: {reason}."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def forget_other(path: Path, fingerprint: str) -> None:
    """Remove a state that is damaged or belongs to another run than that of `fingerprint`."""
    try:
        read_state(path, fingerprint)
    except SecateurError:
        path.unlink()


def damaged(path: Path) -> SecateurError:
    """What to say of a state that does not hold what a training needs to go on."""
    return SecateurError(
        f"{path} is no state of a training, or damaged.\nAdd --force to begin anew."
    )


def read_state(path: Path, fingerprint: str) -> State | None:
    """The state in `path`; None if there is no such file.

    Raises:
        SecateurError: it is of another run, or damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            values = parse_json(about["values"], lambda why: damaged(path))
            own = about.get("fingerprint") == fingerprint
            names = list(file.keys()) if own else []  # a state is as large as what is trained
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (OSError, SafetensorError, KeyError, TypeError, SecateurError) as error:
        raise damaged(path) from error
    if not isinstance(values, dict):
        raise damaged(path)
    if not own:
        raise SecateurError(
            f"{path} is the state of an unfinished training with other settings, data or weights."
            "\nRepeat that command to go on, or add --force to begin anew."
        )
    return State(tensors, values)
