"""The weights that a model expects, found in what a checkpoint holds."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import TensorSpec, View, renamed
from ..errors import SecateurError

_SHOWN = 3  # names in a note


def expected(skeleton: nn.Module) -> dict[str, TensorSpec]:
    """The tensors that a checkpoint of the model has; tied ones under their first name."""
    tied = tied_names(skeleton)
    return {
        name: TensorSpec(tuple(tensor.shape), tensor.dtype)
        for name, tensor in skeleton.state_dict().items()
        if name not in tied
    }


def tied_names(skeleton: nn.Module) -> dict[str, str]:
    """By name, the tensor that a tied one is the same as."""
    return dict(getattr(skeleton, "all_tied_weights_keys", None) or {})


def stored_apart(weights: View, skeleton: nn.Module) -> list[str]:
    """The tensors that are tied by the config, but stored with other values than their twin."""
    return [
        name
        for name, twin in tied_names(skeleton).items()
        if name in weights.specs and twin in weights.specs and not _equal(weights, name, twin)
    ]


def _equal(weights: View, one: str, other: str) -> bool:
    if weights.specs[one].shape != weights.specs[other].shape:
        return False
    # Mostly the first row tells; that of quantised weights is codes, and perhaps fewer of them.
    first, second = weights.head(one), weights.head(other)
    alike = (first.shape, first.dtype) == (second.shape, second.dtype)
    if alike and not torch.equal(first.float(), second.float()):
        return False
    return bool((weights.tensor(one) == weights.tensor(other)).all())


def fitted(view: View, skeleton: nn.Module, source: str, tied: Mapping[str, str]) -> View:
    """The weights that a model expects, in its order, found under its names in what `view` holds.

    Tied tensors may be stored under either name (`tied`: by name, their twin). What the model does
    not have is left out; `notes` say so, as transformers does. Reading one that holds NaN or
    infinity is an error.

    Raises:
        SecateurError: a tensor is missing or has another shape.
    """
    names: dict[str, str] = {}
    for name, spec in expected(skeleton).items():
        twins = [alias for alias, target in tied.items() if target == name]
        others = [name, *twins, *([tied[name]] if name in tied else [])]
        found = next((other for other in others if other in view.specs), None)
        if found is None:
            raise SecateurError(
                f"{source} lacks the tensor {name}: the weights are incomplete or of another"
                " model. Download it again."
            )
        _check(view.specs[found], spec, name, source)
        names[name] = found
    stored = renamed(view, names)
    known = {*skeleton.state_dict(), *names.values()}
    left = [name for name in view.specs if name not in known and not _ignored(name, skeleton)]
    notes = (*view.notes, *([_left_out(left, skeleton)] if left else []))
    return replace(stored, read=lambda name: _finite(name, stored.tensor(name)), notes=notes)


def _check(have: TensorSpec, spec: TensorSpec, name: str, source: str) -> None:
    if have.shape != spec.shape:
        raise SecateurError(
            f"{source}: tensor {name} has shape {list(have.shape)}, config.json says"
            f" {list(spec.shape)}. The config and the weights do not belong together."
        )
    if not have.dtype.is_floating_point or have.dtype.itemsize < 2:
        raise SecateurError(
            f"{source} is quantised ({name} is {have.dtype}); prune the floating-point model and"
            " quantise the result."
        )


def _finite(name: str, tensor: Tensor) -> Tensor:
    # The extremes are finite if and only if everything is, and need no mask as large as the tensor.
    if tensor.numel() and not all(torch.isfinite(end) for end in torch.aminmax(tensor)):
        raise SecateurError(
            f"The weights hold NaN or infinity, first in {name}. Pruning needs a sound checkpoint:"
            " download or export the model again."
        )
    return tensor


def _ignored(name: str, skeleton: Any) -> bool:
    """Whether transformers, too, would leave out the tensor `name` without a word."""
    patterns = set(skeleton._keys_to_ignore_on_load_unexpected or ())
    buffers = [buffer for buffer, _ in skeleton.named_buffers()]
    if any(buffer.endswith("rotary_emb.inv_freq") for buffer in buffers):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(buffer.endswith("position_ids") for buffer in buffers):
        patterns.add(r"(^|\.)position_ids$")
    return any(re.search(pattern, name) for pattern in patterns)


def _left_out(names: list[str], skeleton: nn.Module) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return (
        f"tensors of the checkpoint that {type(skeleton).__name__} does not have: {len(names):,}"
        f" ({', '.join(names[:_SHOWN])}{more}); they are left out, as transformers leaves them out"
    )
