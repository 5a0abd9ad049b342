"""The plots of one run: what was cut, why, and how it was mended."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .kinds import kind_name, scored_name
from .plotting import (
    Plot,
    Spec,
    beside,
    colour,
    layer,
    layers_axis,
    magnitude,
    number,
    shapes,
    spec,
    told,
)
from .value import Blend, Cut, Place, Recovery, Report, Scores, Stability, Way

STAYS, GOES = "stays", "goes"


def share_removed(cuts: Iterable[Cut]) -> float:
    """The share of their parameters that went."""
    own = list(cuts)
    return sum(one.removed for one in own) / max(sum(one.parameters for one in own), 1)


def kinds_of(places: Iterable[Place]) -> list[str]:
    """The kinds of units that there are, in the order in which they come."""
    return list(dict.fromkeys(one.kind for one in places if one.layer is not None))


def layers_in(places: Iterable[Place]) -> int:
    """One more than the last layer."""
    return 1 + max((one.layer for one in places if one.layer is not None), default=0)


def cut_plot(cuts: Sequence[Cut], sentence: str) -> Plot:
    """Parameters removed by layer and kind, as bars."""
    kinds = kinds_of(cuts)
    rows = []
    for one in cuts:
        if one.layer is None:
            continue
        left, right = beside(kinds.index(one.kind), len(kinds))
        rows.append(
            {
                "layer": one.layer,
                "units": kind_name(one.kind),
                "left": one.layer + left,
                "right": one.layer + right,
                "removed": one.removed / max(one.parameters, 1),
                "nothing": 0,
                "kept": f"{one.kept:,} of {one.of:,}",
            }
        )
    names = [kind_name(kind) for kind in kinds]
    shades = colour("units", names)
    count = layers_in(cuts)
    bars = layer(
        rows,
        "rect",
        x=layers_axis("left", count),
        x2={"field": "right"},
        y=number("removed", "parameters removed, %", domain=[0, 1], axis={"format": "%"}),
        y2={"field": "nothing"},
        color=shades,
        tooltip=told(
            ("layer", "layer"), ("units", "units"), ("kept", "kept"), ("removed", "removed", ".1%")
        ),
    )
    totals = layer(
        [
            {
                "left": number_ - 0.5,
                "right": number_ + 0.5,
                "layer": number_,
                "whole layer": share_removed(one for one in cuts if one.layer == number_),
            }
            for number_ in range(count)
        ],
        {"type": "rule", "strokeWidth": 2.5, "color": "var(--ink)"},
        x=layers_axis("left", count),
        x2={"field": "right"},
        y=number("whole layer", "parameters removed, %", domain=[0, 1], axis={"format": "%"}),
        tooltip=told(("layer", "layer"), ("whole layer", "removed of the whole layer", ".1%")),
    )
    return Plot(
        "cut-plot", "Removed by layer", sentence, spec([bars, *([totals] * (len(kinds) > 1))])
    )


def searched(way: Way, ways: Iterable[Way]) -> str:
    """The search of a way; of the one that no profile binds, as those beside it are, that too."""
    several = len({one.profile for one in ways}) > 1
    return f"{way.search} (free)" if several and way.profile == "free" else way.search


def contest_plot(ways: Sequence[Way], sentence: str) -> Plot:
    """Divergence from the dense model of what was tried."""
    rows: list[dict[str, Any]] = [
        {
            "way": f"{one.importance}, {searched(one, ways)}",
            "repair": one.repair,
            "KL": one.divergence,
            "fitted on": f"{one.windows:,} windows",
        }
        for one in ways
        if one.divergence is not None
    ]
    count = len({row["way"] for row in rows})
    points = layer(
        rows,
        {"type": "point", "filled": True, "size": 110, "opacity": 1},
        x=magnitude("KL", "KL to dense, nats", [row["KL"] for row in rows]),
        y={
            "field": "way",
            "type": "nominal",
            "title": None,
            "sort": None,
            "axis": {"labelLimit": 150, "grid": True},
        },
        color={
            **colour("fitted on", list(dict.fromkeys(row["fitted on"] for row in rows))),
            "legend": {"columns": 1},
        },
        tooltip=told(
            ("way", "score, search"), ("repair", "repair"), ("fitted on", "fitted on"),
            ("KL", "KL, nats a token", ".4f"),
        ),
    )  # fmt: skip
    return Plot("contest-plot", "What was tried", sentence, spec([points], height=60 + 34 * count))


def scores_plots(scores: Sequence[Scores]) -> list[Plot]:
    """For each kind, how scores are spread, and which of them go."""
    plots = []
    for kind in kinds_of(scores):
        own = [one for one in scores if one.kind == kind]
        edges = own[0].edges
        if any(one.edges != edges for one in own) or None in edges:
            continue
        stay = [sum(counts) for counts in zip(*(one.stay for one in own), strict=True)]
        go = [sum(counts) for counts in zip(*(one.go for one in own), strict=True)]
        rows: list[Mapping[str, Any]] = []
        for low, high, kept, gone in zip(edges[:-1], edges[1:], stay, go, strict=True):
            bounds = {"from": low, "to": high}
            rows.append({**bounds, "what": GOES, "low": 0, "high": gone, "units": gone})
            rows.append({**bounds, "what": STAYS, "low": gone, "high": gone + kept, "units": kept})
        rows = [row for row in rows if row["units"]]
        bars = layer(
            rows,
            "rect",
            x=magnitude("from", "score of a unit", edges, domain=[edges[0], edges[-1]]),
            x2={"field": "to"},
            y=number("low", f"number of {scored_name(kind)}"),
            y2={"field": "high"},
            color=colour("what", [STAYS, GOES], ["var(--c1)", "var(--c2)"]),
            tooltip=told(
                ("what", "these"), ("units", "units", ","), ("from", "score from", ".3g"),
                ("to", "to", ".3g"),
            ),
        )  # fmt: skip
        sentence = (
            f"How many {scored_name(kind)} have which score, all layers together: to the right is"
            " what matters most. Where both colours stand over one score, the score alone did not"
            " decide: what a unit costs did too, or how much its layer may lose."
        )
        name = f"importance-{kind.replace('_', '-')}"
        plots.append(
            Plot(name, f"Importance of {scored_name(kind)}", sentence, spec([bars], height=220))
        )
    return plots


def spread_plot(
    name: str,
    title: str,
    sentence: str,
    places: Sequence[Scores] | Sequence[Stability],
    what: str,
) -> Plot:
    """Quantiles by layer and kind: a line from 5% to 95%, a bar from 25% to 75%, the median."""
    kinds = kinds_of(places)
    rows: list[dict[str, Any]] = []
    for one in places:
        if one.layer is None or None in one.quantiles:
            continue
        left, right = beside(kinds.index(one.kind), len(kinds))
        low, quarter, median, upper, high = one.quantiles[1:6]
        rows.append(
            {
                "layer": one.layer, "units": scored_name(one.kind),
                "place": one.layer + (left + right) / 2,
                "low": low, "quarter": quarter, "median": median, "upper": upper, "high": high,
            }
        )  # fmt: skip
    axis = magnitude("low", what, [row[end] for row in rows for end in ("low", "high")])
    shared: Spec = {
        "x": layers_axis("place", layers_in(places)),
        "color": colour("units", [scored_name(kind) for kind in kinds]),
        "tooltip": told(
            ("layer", "layer"), ("units", "units"), ("low", "5% are below", ".3g"),
            ("quarter", "25%", ".3g"), ("median", "median", ".3g"), ("upper", "75%", ".3g"),
            ("high", "95%", ".3g"),
        ),
    }  # fmt: skip
    marks = [
        layer(rows, {"type": "rule", "strokeWidth": 1.5}, **shared, y=axis, y2={"field": "high"}),
        layer(
            rows, {"type": "rule", "strokeWidth": 5, "opacity": 0.55}, **shared,
            y=number("quarter"), y2={"field": "upper"},
        ),
        layer(
            rows, {"type": "point", "filled": True, "size": 46, "opacity": 1}, **shared,
            y=number("median"),
        ),
    ]  # fmt: skip
    return Plot(name, title, sentence, spec(marks))


def lines_plot(
    name: str,
    title: str,
    sentence: str,
    rows: Sequence[Mapping[str, Any]],
    y: Spec,
    count: int,
    order: Sequence[str] = (),
) -> Plot:
    """A line over the layers for each name in `units`; `value` is drawn.

    Many names, in an `order` that other plots have too, get shapes of their own.
    """
    names = list(order) or list(dict.fromkeys(str(row["units"]) for row in rows))
    shaped = {"shape": shapes("units", names)} if order else {}
    marks = layer(
        rows,
        {"type": "line", "point": {"size": 46}, "strokeWidth": 2},
        x=layers_axis("layer", count),
        y=y,
        color=colour("units", names),
        **shaped,
        tooltip=told(
            ("layer", "layer"),
            ("units", ""),
            ("value", str(y["title"]).removesuffix(" (log scale)"), ".3~g"),
        ),
    )
    return Plot(name, title, sentence, spec([marks]))


def blend_plot(name: str, title: str, blend: Sequence[Blend]) -> Plot:
    """Share of the coarse score by layer and kind."""
    values = [
        {"layer": one.layer, "units": kind_name(one.kind), "value": one.coarse}
        for one in blend
        if one.layer is not None
    ]
    return lines_plot(
        name,
        title,
        "At 1 the coarse score alone counts (signed sums over a whole unit), at 0 the fine one"
        " (magnitudes, weight by weight); in between both do.",
        values,
        number("value", "share of the coarse score", domain=[0, 1]),
        layers_in(blend),
    )


def repair_plots(report: Report, sentence: str) -> list[Plot]:
    """Error of each consumer before and after its repair, and how sound the fit was."""
    fits = [fit for fit in report.repair if fit.layer is not None]
    kinds, count = kinds_of(fits), layers_in(fits)
    rows = []
    for fit in fits:
        assert fit.layer is not None, "they were chosen so"
        left, right = beside(kinds.index(fit.kind), len(kinds))
        rows.append(
            {
                "layer": fit.layer, "units": kind_name(fit.kind),
                "place": fit.layer + (left + right) / 2,
                "before": fit.before, "after": fit.after, "module": fit.module,
            }
        )  # fmt: skip
    shared: Spec = {
        "x": layers_axis("place", count),
        "color": colour("units", [kind_name(kind) for kind in kinds]),
        "tooltip": told(
            ("module", "linear"), ("before", "before the repair", ".1%"),
            ("after", "after it", ".1%"),
        ),
    }  # fmt: skip
    error = number("before", "squared error, % of the target", axis={"format": "%"}, zero=True)
    marks = [
        layer(rows, {"type": "rule", "strokeWidth": 2}, **shared, y=error, y2={"field": "after"}),
        layer(
            rows, {"type": "point", "size": 60, "opacity": 1, "fill": "var(--paper)"}, **shared,
            y=number("before"),
        ),
        layer(
            rows, {"type": "point", "filled": True, "size": 60, "opacity": 1}, **shared,
            y=number("after"),
        ),
    ]  # fmt: skip
    conditions: list[dict[str, Any]] = [
        {"layer": fit.layer, "units": kind_name(fit.kind), "value": fit.condition}
        for fit in fits
        if fit.condition
    ]
    y = magnitude("value", "condition number", [row["value"] for row in conditions])
    return [
        Plot("repair-error", "Repair error by layer", sentence, spec(marks)),
        lines_plot(
            "repair-condition",
            "Condition of the fits by layer",
            "The lower the better posed: above a million, what was fitted may be noise of the"
            " calibration text.",
            conditions,
            y,
            count,
        ),
    ]


def recovery_plot(recovery: Recovery, sentence: str) -> Plot:
    """Losses over the steps of a training, and the step that was kept."""
    names = {"held_out": "held-out examples", "trained": "training examples"}
    rows = [
        {"step": check.step, "what": what, "loss": getattr(check, field)}
        for check in recovery.checks
        for field, what in names.items()
        if getattr(check, field) is not None
    ]
    x = number("step", "step", axis={"format": "d", "tickCount": 6, "grid": False}, zero=True)
    lines = layer(
        rows,
        {"type": "line", "point": {"size": 46}, "strokeWidth": 2},
        x=x,
        y=number("loss", "loss, nats a token", zero=False),
        color=colour("what", list(names.values())),
        tooltip=told(("step", "step"), ("what", "on"), ("loss", "loss, nats a token", ".4f")),
    )
    best = layer(
        [{"step": recovery.best_step, "what": "kept"}],
        {"type": "rule", "strokeDash": [4, 4], "color": "var(--soft)"},
        x=x,
        tooltip=told(("step", "the state that is kept, step")),
    )
    return Plot("recovery-plot", "Loss over the training", sentence, spec([lines, best]))
