"""What of a model's layers no unit owns, and why."""

from dataclasses import dataclass

from ..structure import Shapes, Structure
from .families import Family

_SHARED = "every unit uses all of it"


@dataclass(frozen=True, slots=True)
class LeftWhole:
    """A module (by its path within a layer) that loses nothing, in these layers, and the reason."""

    module: str
    layers: tuple[int, ...]
    reason: str


def left_whole(family: Family, structure: Structure, shapes: Shapes) -> tuple[LeftWhole, ...]:
    """The modules in the layers whose matrices have no units; of a declared family, none.

    `shapes` are those of the model's tensors by name.
    """
    owned = {m.tensor for axis in structure.axes if axis.units > 1 for m in axis.members}
    layers: dict[tuple[str, str], set[int]] = {}
    for name, shape in shapes.items():
        inside = name.removeprefix(f"{family.layers}.")
        number, _, path = inside.partition(".")
        if inside == name or not number.isdigit() or len(shape) < 2 or name in owned:
            continue
        layers.setdefault(_reason(family, path.rpartition(".")[0]), set()).add(int(number))
    return tuple(
        LeftWhole(module, tuple(sorted(found)), reason)
        for (module, reason), found in layers.items()
    )


def _reason(family: Family, module: str) -> tuple[str, str]:
    """The module that a reason is known of, and the reason."""
    for known, reason in family.left:
        if module == known or module.startswith(f"{known}."):
            return known, reason
    return module, _SHARED
