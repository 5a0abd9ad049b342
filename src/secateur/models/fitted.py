"""The weights that a model expects, found in what a checkpoint holds."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import TensorSpec, Weights
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


def stored_apart(weights: Weights, skeleton: nn.Module) -> list[str]:
    """The tensors that are tied by the config, but stored with other values than their twin."""
    return [
        name
        for name, twin in tied_names(skeleton).items()
        if name in weights.specs and twin in weights.specs and not _equal(weights, name, twin)
    ]


def _equal(weights: Weights, one: str, other: str) -> bool:
    if weights.specs[one].shape != weights.specs[other].shape:
        return False
    # Mostly the first row tells; that of quantised weights is codes, and perhaps fewer of them.
    first, second = weights.head(one), weights.head(other)
    alike = (first.shape, first.dtype) == (second.shape, second.dtype)
    if alike and not torch.equal(first.float(), second.float()):
        return False
    return bool((weights.tensor(one) == weights.tensor(other)).all())


class Fitted:
    """The weights that a model expects, found under its names in what a checkpoint holds.

    Tied tensors may be stored under either name (`tied`: by name, their twin). What the model does
    not have is left out; `notes` say so, as transformers does.

    Raises:
        SecateurError: a tensor is missing or has another shape.
    """

    def __init__(
        self, weights: Weights, skeleton: nn.Module, source: str, tied: Mapping[str, str]
    ) -> None:
        self._weights = weights
        self._names: dict[str, str] = {}
        self._specs: dict[str, TensorSpec] = {}
        have = weights.specs
        for name, spec in expected(skeleton).items():
            twins = [alias for alias, target in tied.items() if target == name]
            names = [name, *twins, *([tied[name]] if name in tied else [])]
            found = next((other for other in names if other in have), None)
            if found is None:
                raise SecateurError(
                    f"{source} lacks the tensor {name}: the weights are incomplete or of another"
                    " model. Download it again."
                )
            if have[found].shape != spec.shape:
                raise SecateurError(
                    f"{source}: tensor {name} has shape {list(have[found].shape)}, config.json"
                    f" says {list(spec.shape)}. The config and the weights do not belong together."
                )
            if not have[found].dtype.is_floating_point or have[found].dtype.itemsize < 2:
                raise SecateurError(
                    f"{source} is quantised ({name} is {have[found].dtype}); prune the"
                    " floating-point model and quantise the result."
                )
            self._names[name] = found
            self._specs[name] = have[found]
        known = {*skeleton.state_dict(), *self._names.values()}
        left = [name for name in have if name not in known and not _ignored(name, skeleton)]
        self.notes = (_left_out(left, skeleton),) if left else ()

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Names in the model's order; shapes and dtypes as stored."""
        return self._specs

    def tensor(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            SecateurError: it holds NaN or infinity.
        """
        tensor = self._weights.tensor(self._names[name])
        # The extremes are finite if and only if everything is, and need no mask as large as the
        # tensor.
        if tensor.numel() and not all(torch.isfinite(end) for end in torch.aminmax(tensor)):
            raise SecateurError(
                f"The weights hold NaN or infinity, first in {name}. Pruning needs a sound"
                " checkpoint: download or export the model again."
            )
        return tensor

    def head(self, name: str) -> Tensor:
        """The first row of one tensor."""
        return self._weights.head(self._names[name])


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
