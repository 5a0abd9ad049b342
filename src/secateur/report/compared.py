"""The sections of a comparison of methods, on one model or on several."""

from collections.abc import Sequence

from .averages import Average, averages, models_of, several_seeds
from .comparing import (
    at,
    blend_plots,
    by_model,
    cut_plots,
    cut_tables,
    quality_plot,
    ratios,
    winner,
)
from .facts import text
from .parts import Cell, Section, Table, cell
from .plotting import Plot
from .value import Report

_SENTENCE = (
    "The lower a line, the better the method; all start at the dense model. Look at what was"
    " really removed, too: units are whole."
)
_BARS = " Bars reach a standard deviation over seeds to either side."


def quality_of_all(report: Report, *, static: bool) -> Section:
    """Which method won, at each ratio, on each model."""
    title = "Which method won"
    means = averages(report.rows)
    models = by_model(means)
    if not means or not means[0].windows:
        why = "Perplexity was not measured: --evaluate FILE.txt does."
        return Section("quality", title, why, [], [_table(own, "") for own in models.values()])
    plots, tables = [], []
    for place, (model, own) in enumerate(models.items()):
        of = f" on {model}" if len(models) > 1 else ""
        plots.append(_plot(place, of, own, static=static))
        tables.append(_table(own, of))
    return Section("quality", title, _lead(report, models), plots, tables)


def _lead(report: Report, models: dict[str, list[Average]]) -> str:
    several = len(models) > 1
    dense = [
        f"{model if several else 'The dense model'} has {_dense(own[0])}{' when dense' * several}"
        for model, own in models.items()
    ]
    over = several_seeds([one for own in models.values() for one in own])
    how = " Numbers are means over seeds, a standard deviation behind \N{PLUS-MINUS SIGN}." * over
    return (
        f"{report.evaluated_on} {'; '.join(dense)}.{how} Marked is, at each"
        " ratio, the method whose loss rose least for what it removed (log of perplexity over"
        " dense, by the square of the share). Weights are counted, not written; times leave out"
        " what all methods share."
    )


def _dense(one: Average) -> str:
    return ", ".join(f"{one.at(w, before=True)} in windows of {w}" for w in one.windows)


def _plot(place: int, of: str, means: Sequence[Average], *, static: bool) -> Plot:
    sentence = _SENTENCE + _BARS * several_seeds(means)
    name = "quality-plot" if place == 0 else f"quality-plot-{place}"
    return quality_plot(name, f"Perplexity by what went{of}", means, sentence, static=static)


def _table(means: Sequence[Average], of: str) -> Table:
    """A line for each method, repair and ratio of one model."""
    seeds = several_seeds(means)
    columns = (
        "method",
        "ratio",
        *(f"perplexity, window {window}" for window in means[0].windows),
        "removed",
        "MB",
        "form",
        "time, s",
        *(["seeds"] * seeds),
    )
    order = [one for ratio in ratios(means) for one in at(means, ratio)]
    best = [winner(at(order, ratio)) for ratio in ratios(means)]
    return Table(
        f"Every method{of} (the winner of each ratio is marked)",
        columns,
        [_cells(one, seeds=seeds) for one in order],
        frozenset(n for n, one in enumerate(order) if any(one is won for won in best)),
        open=True,
    )


def _cells(one: Average, *, seeds: bool) -> list[Cell]:
    size, seconds = one.of(lambda run: run.bytes).mean, one.of(lambda run: run.seconds).mean
    return [
        cell(one.label),
        cell(one.ratio, f"{one.ratio:.0%}"),
        *(cell(one.after(window).mean, one.at(window)) for window in one.windows),
        cell(one.removed, f"{one.removed:.1%}"),
        cell(size, f"{(size or 0) / 1e6:,.2f}"),
        cell(one.form),
        cell(seconds, text(seconds, 1)),
        *([cell(len(one.runs))] * seeds),
    ]


def cuts_of_all(report: Report) -> Section:
    """What each method takes from each layer."""
    means = averages(report.rows)
    plots = cut_plots(means)
    over = " (means over seeds)" if several_seeds(means) else ""
    lead = f"How much each method takes from each layer{over}." if plots else "Not recorded."
    return Section("cut", "What was cut where", lead, plots, cut_tables(means))


def blends_of_all(report: Report) -> Section:
    """The blend of each method that fuses two scores."""
    means = averages(report.rows)
    plots = blend_plots(means)
    which = ", with the first seed" if several_seeds(means) else ""
    lead = (
        f"How much each of two gradient scores counts, layer by layer{which}."
        if plots
        else "No method here blends two scores differently by layer; hywia does."
    )
    return Section("blend", "Blend of coarse and fine scores (HyWIA)", lead, plots)


def left_out(report: Report) -> list[Section]:
    """The runs that made no row, and why; no section, if all did."""
    if not report.left_out:
        return []
    seeds: dict[tuple[str, str], list[str]] = {}
    for one in report.left_out:
        repair = "" if one.repair in ("", "none") else f" + {one.repair}"
        run = f"{one.model}: {one.method}{repair} at {one.ratio:.0%}"
        why = f"{'' if one.died else 'refused: '}{' '.join(one.why.split())}"
        seeds.setdefault((run, why), []).append(str(one.seed))
    rows = [[cell(f"{run}, seed {', '.join(own)}"), cell(why)] for (run, why), own in seeds.items()]
    lead = (
        "These are in no mean above. What was refused is bad input, and stays so until it is"
        " changed; what died is tried again when the same command is typed again."
    )
    table = Table("Runs without a row", ("run", "why"), rows, open=True)
    return [Section("left-out", "What was left out", lead, [], [table])]


def windows_of_all(report: Report) -> list[Table]:
    """The calibration windows of each model and seed, where there are several."""
    found = {
        (row.model, row.seed): row.calibration for row in report.rows if row.calibration is not None
    }
    rows = [
        [cell(model), cell(seed), cell(own.text), cell(f"{own.windows:,} of {own.length:,} tokens"),
         cell(own.sha256)]
        for (model, seed), own in found.items()
    ]  # fmt: skip
    columns = ("model", "seed", "text", "windows", "SHA-256 of the tokens")
    many = len(models_of(report.rows)) > 1 or len({row.seed for row in report.rows}) > 1
    return [Table("Calibration windows", columns, rows)] if rows and many else []
