"""The blend of coarse and fine scores by layer: HyWIA's headline observation, as table and chart.

A blend is the two shares by axis name, `{"layers.3.mlp": {"coarse": 0.8, "fine": 0.2}}`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SecateurError
from ..shown import one_line
from .svg import plotted

Blend = Mapping[str, Mapping[str, float]]

# layers.3.mlp
_AXIS = re.compile(r"layers\.\d{1,9}\..")

BLEND_COLUMNS = ("layer", "units", "coarse", "fine")


def checked_blend(raw: Any, where: str) -> dict[str, dict[str, float]]:
    """A blend that was read from a file, if it is one.

    Raises:
        SecateurError: it is not; `where` says which file that was.
    """
    entries = raw.items() if isinstance(raw, dict) else ()
    if not entries or not all(_AXIS.match(axis) and _is_shares(one) for axis, one in entries):
        raise SecateurError(
            f"{where}: results.blend is not what prune writes there, two shares (coarse, fine) by"
            " axis.\nCopy the file from the pruned folder again, or remove the table."
        )
    return {axis: {name: float(one[name]) for name in ("coarse", "fine")} for axis, one in entries}


def _is_shares(value: Any) -> bool:
    if not isinstance(value, dict) or not {"coarse", "fine"} <= value.keys():
        return False
    return all(type(value[name]) in (int, float) for name in ("coarse", "fine"))


def blend_rows(blend: Blend) -> list[tuple[int, str, str, str]]:
    """(layer, kind of units, share of the coarse score, share of the fine one)."""
    return [
        (layer, kind, f"{blend[axis]['coarse']:.2f}", f"{blend[axis]['fine']:.2f}")
        for layer, kind, axis in _placed(blend)
    ]


def blend_chart(blends: Mapping[str, Blend]) -> str:
    """Share of the coarse score over the layers, one panel a method, as SVG text."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 0.6 + 2.4 * len(blends)), layout="constrained")
    panels = figure.subplots(len(blends), 1, squeeze=False, sharex=True)[:, 0]
    for panel, (method, blend) in zip(panels, blends.items(), strict=True):
        placed = _placed(blend)
        for kind in dict.fromkeys(kind for _, kind, _ in placed):
            points = [(layer, blend[axis]["coarse"]) for layer, own, axis in placed if own == kind]
            panel.plot(*zip(*points, strict=True), marker="o", label=kind)
        panel.axhline(0.5, color="#888888", linewidth=0.8, linestyle="--")
        panel.set_ylim(-0.04, 1.04)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_title(one_line(method).replace("$", r"\$"), fontsize="medium")
        panel.set_ylabel("share of the coarse\nscore (rest: fine)")
        panel.grid(visible=True, alpha=0.25)
        panel.legend(title="units", loc="center left", bbox_to_anchor=(1.0, 0.5))
    panels[-1].set_xlabel("decoder layer, from 0")
    return plotted(figure)


def blends_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Blend]:
    """The blends of a comparison's rows by method: ratio and repair do not change them.

    A fusion that gives both the same share everywhere has nothing to show.
    """
    found = {row["method"]: row["blend"] for row in rows if row.get("blend")}
    return {method: blend for method, blend in found.items() if varies(blend)}


def varies(blend: Blend) -> bool:
    """Whether the blend is not the same in all layers."""
    shares = [one["coarse"] for one in blend.values()]
    return max(shares) - min(shares) > 1e-6


def _placed(blend: Blend) -> list[tuple[int, str, str]]:
    """(layer, kind, axis) in the order of layers."""
    parts = ((*axis.split(".", 2)[1:], axis) for axis in blend)
    return sorted((int(layer), kind, axis) for layer, kind, axis in parts)
