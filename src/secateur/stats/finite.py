"""Whether activations are finite: asked of the extremes of each batch, told once a layer.

NaN and infinity come through `aminmax`, which reads a tensor once and writes nothing: a twentieth
of what `isfinite().all()` costs. The extremes stay on the device, so that nothing waits for it.
"""

import torch
from torch import Tensor

from ..errors import SecateurError
from ..ranks import ALONE, Ranks


class Finite:
    """What has been seen in a layer by name, in order: the extremes of every batch.

    Of several `ranks` all find what one has seen.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self._seen: dict[str, tuple[Tensor, torch.dtype]] = {}

    def see(self, what: str, tensor: Tensor, dtype: torch.dtype | None = None) -> None:
        """Look at one batch of a tensor, which `what` calls by layer and name.

        `dtype` is what it was computed in, if that is not its own.
        """
        if not tensor.numel():  # an expert that no token came to
            return
        extremes = torch.stack(tensor.detach().aminmax()).float()
        if what in self._seen:
            extremes = torch.cat([self._seen[what][0], extremes])
        self._seen[what] = extremes, dtype or tensor.dtype

    def check(self) -> None:
        """Begin anew.

        Raises:
            SecateurError: what was seen first of those that were not finite.
        """
        for found in self._ranks.each("what is finite", self._first_of_those()):
            if found is not None:
                what, dtype = found
                raise not_finite(what, getattr(torch, dtype))

    def _first_of_those(self) -> tuple[str, str] | None:
        """What was seen first that is not finite, and the name of its dtype."""
        seen, self._seen = self._seen, {}
        if (
            seen
            and not torch.isfinite(torch.cat([extremes for extremes, _ in seen.values()])).all()
        ):
            for what, (extremes, dtype) in seen.items():
                if not torch.isfinite(extremes).all():
                    return what, str(dtype).removeprefix("torch.")
        return None


def not_finite(what: str, dtype: torch.dtype) -> SecateurError:
    """The error for NaN or infinity in activations, named by layer and tensor."""
    name = str(dtype).removeprefix("torch.")
    # float16 ends at 65,504, which activations of some models pass
    wider = "--dtype bfloat16 (or float32)" if dtype == torch.float16 else "--dtype float32"
    return SecateurError(
        f"NaN or infinity in {what}, computed in {name}.\n"
        f"Try {wider}; if it stays, the checkpoint is damaged: download it again."
    )
