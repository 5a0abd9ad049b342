"""The coupled structures of a model: what they are, and that they hold."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ..arguments import a_model, public
from ..errors import SecateurError
from ..export import proved
from ..models import LeftWhole, OpenModel, open_config, open_model
from ..report import StructureRow, structure_picture, structure_rows
from ..structure import Structure, format_ranges
from .stock import standing


@dataclass(frozen=True)
class Discovery:
    """The coupled structures of a model, which hold: slicing equals masking on a small model.

    `difference` is the greatest one of logits between the two, relative.
    """

    opened: OpenModel
    difference: float

    @property
    def structure(self) -> Structure:
        """Axes of every granularity."""
        return self.opened.structures

    @property
    def left(self) -> tuple[LeftWhole, ...]:
        """Modules of the layers that lose nothing, and why."""
        return self.opened.left

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the model's tensors by name."""
        return {name: spec.shape for name, spec in self.opened.weights.specs.items()}

    @cached_property
    def rows(self) -> list[StructureRow]:
        """One row for each granularity and kind of layer."""
        return structure_rows(self.structure, self.shapes)

    def picture(self, layer: int | None = None) -> str:
        """One layer as SVG text, the first that has units if none is named.

        Raises:
            SecateurError: the layer has no units.
        """
        layers = sorted({axis.layer for axis in self.structure.select().axes})
        chosen = layers[0] if layer is None else layer
        if chosen not in layers:
            raise SecateurError(
                f"Layer {chosen} has no units; expected one of {format_ranges(layers)}."
            )
        return structure_picture(self.structure, self.shapes, chosen)

    @cached_property
    def form(self) -> dict[str, Any]:
        """Whether the family's own class loads the model and, if not, why."""
        return standing(self.opened)

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON object."""
        return {
            "model": self.opened.source,
            "form": self.form,
            "family": self.structure.family,
            "layout": "declared" if self.opened.declared else "traced",
            "difference": self.difference,
            "left_whole": [asdict(some) for some in self.left],
            "rows": [asdict(row) for row in self.rows],
            "structure": json.loads(self.structure.to_json()),
        }


@public(model=a_model)
def discover(model: str | Path | nn.Module) -> Discovery:
    """Find the coupled structures of a model by its config.json alone (or of a live module).

    Raises:
        SecateurError: not a causal LM, or its structures are not found or do not hold.
    """
    opened = open_model(model) if isinstance(model, nn.Module) else open_config(model)
    return Discovery(*proved(opened))
