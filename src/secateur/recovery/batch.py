"""Some examples on the device, and the places in them that a loss is taken at.

A place is a position before a labelled token: what is foretold there is compared. All other
positions need no logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from ..data import IGNORED, Examples

# So many tokens go through the model at once, unless the number of examples is given.
TOKENS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids on the device; of each place, its number in `ids` laid flat and the next token.

    `rows` and `positions` say on the host which example of the data it is in, and where. One that
    does not count is gone through because other ranks have more: its loss is no part of any.
    """

    ids: Int64[Tensor, "example token"]
    places: Int64[Tensor, " place"]
    labels: Int64[Tensor, " place"]
    rows: Int64[Tensor, " place"]
    positions: Int64[Tensor, " place"]
    counts: bool = True

    @classmethod
    def of(
        cls,
        data: Examples,
        rows: Int64[Tensor, " example"],
        device: torch.device,
        *,
        counts: bool = True,
    ) -> "Batch":
        """The examples `rows` of `data`."""
        part = data[rows]
        example, position = (part.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        ids, places, labels = (
            tensor.to(device, non_blocking=True)
            for tensor in (
                part.ids,
                example * part.ids.shape[1] + position,
                part.labels[example, position + 1],
            )
        )
        return cls(ids, places, labels, rows[example], position, counts)


def micro_batches(
    data: Examples, rows: Int64[Tensor, " example"], micro: int | None
) -> Iterator[Int64[Tensor, " example"]]:
    """Cut `rows` into what goes through the model at once: `micro` examples, or some of one length.

    Without `micro` the shortest come first, as many together as are `TOKENS_AT_ONCE` tokens with
    their padding, and one at least.
    """
    if micro is not None:
        yield from rows.split(micro)
        return
    told = (data.labels[rows] != IGNORED).int()
    lengths = (told * torch.arange(1, told.shape[1] + 1)).amax(dim=1)
    order = lengths.argsort(stable=True)
    start = 0
    for place, length in enumerate(lengths[order].tolist()):
        if place > start and (place + 1 - start) * length > TOKENS_AT_ONCE:
            yield rows[order[start:place]]
            start = place
    yield rows[order[start:]]
