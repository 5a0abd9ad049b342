"""What a comparison of methods says: who won at each ratio, and the plots of all of them."""

import math
from collections.abc import Sequence
from typing import Any

from .averages import Average, models_of
from .comparison import Trial, chart
from .parts import Cell, Table, cell
from .plots import blend_plot, layers_in, lines_plot, share_removed
from .plotting import Plot, Spec, colour, layer, magnitude, number, shapes, spec, told

_FAIR, _TIED, _EVEN = 0.9, 1.02, 0.99


def labels(means: Sequence[Average]) -> list[str]:
    """Methods with their repairs, once each."""
    return list(dict.fromkeys(one.label for one in means))


def ratios(means: Sequence[Average]) -> list[float]:
    """The ratios that were asked for, in order."""
    return list(dict.fromkeys(one.ratio for one in means))


def by_model(means: Sequence[Average]) -> dict[str, list[Average]]:
    """Those of each model, in order."""
    return {model: [one for one in means if one.model == model] for model in models_of(means)}


def at(means: Sequence[Average], ratio: float) -> list[Average]:
    """Those of one ratio."""
    return [one for one in means if one.ratio == ratio]


def winner(means: Sequence[Average]) -> Average | None:
    """The one whose loss rose least for what it removed, of those that removed about as much.

    That is log(perplexity / dense) over the square of the share removed, of the means over seeds
    with nine tenths of the most: units are whole, so that no two remove the same, and who removed
    less should not win by that. Losses rise with the share by a power between 1 and 2; where one
    falls, by how much says all. None if none is finite.
    """
    most = max((one.removed for one in means), default=0.0)
    fair = [
        one for one in means
        if one.removed >= _FAIR * most and one.windows and math.isfinite(_rise(one))
    ]  # fmt: skip
    return min(fair, key=_rise, default=None)


def near_ties(means: Sequence[Average]) -> list[Average]:
    """Those that are no worse than the winner by more than a fiftieth of perplexity.

    One seed says nothing of so little. Of several, also those whose distance from the winner is
    within the standard deviation of their difference.
    """
    best = winner(means)
    if best is None:
        return []
    lead = best.after(best.windows[0])
    if lead.mean is None:
        return []
    found = []
    for one in means:
        if one is best or one.removed < _EVEN * best.removed or not one.windows:
            continue
        own = one.after(one.windows[0])
        apart = math.hypot(lead.deviation or 0.0, own.deviation or 0.0)
        if own.mean is not None and own.mean <= max(_TIED * lead.mean, lead.mean + apart):
            found.append(one)
    return found


def _rise(one: Average) -> float:
    window = one.windows[0]
    before, after = one.before(window).mean, one.after(window).mean
    if not before or not after:
        return math.inf
    rise = math.log(after / before)
    return rise / max(one.removed, 1e-9) ** 2 if rise > 0 else rise


def trials(means: Sequence[Average]) -> tuple[Trial, list[Trial]]:
    """The dense model and the means as the static picture takes them."""

    def known(value: float | None) -> float:
        return float("nan") if value is None else value

    first = means[0]
    dense = {window: known(first.before(window).mean) for window in first.windows}
    return Trial("dense", 0.0, 0.0, dense, 0.0, 0.0), [
        Trial(
            one.first.method,
            one.ratio,
            one.removed,
            {window: known(one.after(window).mean) for window in one.windows},
            (one.of(lambda run: run.bytes).mean or 0.0) / 1e6,
            one.of(lambda run: run.seconds).mean or 0.0,
            one.first.repair,
        )
        for one in means
    ]


def quality_plot(
    name: str, title: str, means: Sequence[Average], sentence: str, *, static: bool
) -> Plot:
    """Perplexity over the share removed, a line a method; bars are a deviation to either side."""
    window = means[0].windows[0]
    rows: list[dict[str, Any]] = []
    for method in labels(means):
        dense = means[0].before(window).mean
        rows.append({"method": method, "removed": 0.0, "perplexity": dense, "form": "dense"})
        for one in (one for one in means if one.label == method):
            found = one.after(window)
            row = {"method": method, "removed": one.removed, "perplexity": found.mean}
            if found.mean and found.deviation is not None:
                low = max(found.mean - found.deviation, found.mean / 100)  # it has a logarithm
                row |= {"low": low, "high": found.mean + found.deviation}
            rows.append({**row, "form": one.form})
    sound = [row for row in rows if row["perplexity"]]
    picture = chart(*trials(means), window) if static else ""
    return Plot(
        name, title, sentence, spec(_marks(sound, labels(means), window), height=330), picture
    )


def _marks(rows: Sequence[dict[str, Any]], names: Sequence[str], window: int) -> list[Spec]:
    """Lines, and where there are several seeds how far these lie apart."""
    height = f"perplexity per token, window {window:,}"
    heights = [row[end] for row in rows for end in ("perplexity", "low", "high") if end in row]
    shared: dict[str, Any] = {
        "x": number(
            "removed", "parameters of the linears removed, %", axis={"format": "%", "tickCount": 6}
        ),
        "color": colour("method", names),
    }
    lines = layer(
        rows,
        {"type": "line", "point": {"size": 60}, "strokeWidth": 2},
        **shared,
        y=magnitude("perplexity", height, heights),
        shape=shapes("method", names),
        tooltip=told(
            ("method", "method"), ("removed", "removed", ".1%"),
            ("perplexity", "perplexity", ",.2f"), ("form", "checkpoint"),
        ),
    )  # fmt: skip
    apart = [row for row in rows if "low" in row]
    if not apart:
        return [lines]
    bars = layer(
        apart,
        {"type": "rule", "strokeWidth": 2},
        **shared,
        y=magnitude("low", height, heights),
        y2={"field": "high"},
    )
    return [lines, bars]


def cut_plots(means: Sequence[Average]) -> list[Plot]:
    """How much each method takes out of each layer, a plot for each model and ratio."""
    plots: list[Plot] = []
    models = by_model(means)
    for model, own in models.items():
        of = f" of {model}" if len(models) > 1 else ""
        for ratio in ratios(own):
            values = [value for one in at(own, ratio) for value in _removed_by_layer(one)]
            if not values:
                continue
            count = 1 + max(int(str(value["layer"])) for value in values)
            y = number("value", "parameters removed, %", domain=[0, 1], axis={"format": "%"})
            plots.append(
                lines_plot(
                    f"cut-{len(plots)}",
                    f"Removed by layer{of} at {ratio:.0%}",
                    "A flat line takes the same from every layer; a peak is a layer that the method"
                    " holds for dispensable.",
                    values,
                    y,
                    count,
                    labels(means),
                )
            )
    return plots


def cut_tables(means: Sequence[Average]) -> list[Table]:
    """The same as numbers: a row a layer, a column a method."""
    tables = []
    models = by_model(means)
    for model, own in models.items():
        of = f" of {model}" if len(models) > 1 else ""
        for ratio in ratios(own):
            columns = {one.label: _removed_by_layer(one) for one in at(own, ratio)}
            columns = {name: values for name, values in columns.items() if values}
            count = max(map(len, columns.values()), default=0)
            rows = [
                [cell(n), *(_share(values, n) for values in columns.values())] for n in range(count)
            ]
            if rows:
                caption = f"Removed by layer{of} at {ratio:.0%}"
                tables.append(Table(caption, ("layer", *columns), rows, folds=True))
    return tables


def _share(values: Sequence[dict[str, Any]], layer_: int) -> Cell:
    if layer_ >= len(values):
        return cell("")
    share = values[layer_]["value"]
    return cell(share, f"{share:.0%}")


def _removed_by_layer(one: Average) -> list[dict[str, Any]]:
    """The share that went of each layer, a mean over seeds."""
    cuts = [[cut for cut in run.cut if cut.layer is not None] for run in one.runs]
    count = max((layers_in(own) for own in cuts if own), default=0)
    return [
        {
            "layer": index,
            "units": one.label,
            "value": share_removed(cut for own in cuts for cut in own if cut.layer == index),
        }
        for index in range(count)
    ]


def blend_plots(means: Sequence[Average]) -> list[Plot]:
    """The blend of each method that fuses two scores and does not give all layers the same.

    It is that of the first seed, at the first ratio.
    """
    plots: list[Plot] = []
    seen: set[tuple[str, str]] = set()
    several = len(by_model(means)) > 1
    for one in means:
        shares = [part.coarse for part in one.first.blend if part.coarse is not None]
        key = one.model, one.first.method
        if key in seen or not shares or max(shares) - min(shares) < 1e-6:
            continue
        seen.add(key)
        of = f" on {one.model}" if several else ""
        title = f"Blend of {one.first.method}{of}"
        plots.append(blend_plot(f"blend-{len(plots)}", title, one.first.blend))
    return plots
