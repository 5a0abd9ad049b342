"""The weights that a model expects, found in what a checkpoint holds."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..checkpoint import TensorSpec, Weights
from ..errors import SecateurError


def expected(skeleton: nn.Module) -> dict[str, TensorSpec]:
    """The tensors that a checkpoint of the model has; tied ones under their first name."""
    tied = getattr(skeleton, "all_tied_weights_keys", None) or {}
    return {
        name: TensorSpec(tuple(tensor.shape), tensor.dtype)
        for name, tensor in skeleton.state_dict().items()
        if name not in tied
    }


class Fitted:
    """The weights that a model expects, found under its names in what a checkpoint holds.

    A checkpoint of the base model lacks the prefix (`layers.0...` for `model.layers.0...`); tied
    tensors may be stored under either name; others (old rotary buffers) are left out.

    Raises:
        SecateurError: a tensor is missing or has another shape.
    """

    def __init__(self, weights: Weights, skeleton: nn.Module, source: str) -> None:
        self._weights = weights
        self._names: dict[str, str] = {}
        self._specs: dict[str, TensorSpec] = {}
        have = weights.specs
        tied = dict(getattr(skeleton, "all_tied_weights_keys", None) or {})
        for name, spec in expected(skeleton).items():
            names = [name, *(alias for alias, target in tied.items() if target == name)]
            names += [other.partition(".")[2] for other in names]
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
