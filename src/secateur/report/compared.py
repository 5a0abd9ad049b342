"""The sections of a comparison of methods."""

from .comparing import blend_plots, cut_plots, label, quality_plot, ratios, winner
from .facts import text
from .parts import Section, Table, cell
from .value import Report


def quality_of_all(report: Report, *, static: bool) -> Section:
    """Which method won, at each ratio."""
    columns = (
        "method",
        "ratio asked",
        "removed",
        *(f"perplexity, window {p.window}" for p in report.rows[0].perplexity),
        "MB",
        "form",
        "time, s",
    )
    order = [row for ratio in ratios(report) for row in report.rows if row.ratio == ratio]
    best = [winner([row for row in order if row.ratio == ratio]) for ratio in ratios(report)]
    rows = [
        [
            cell(label(r)),
            cell(r.ratio, f"{r.ratio:.0%}"),
            cell(r.removed, f"{r.removed:.1%}"),
            *(cell(p.after, text(p.after)) for p in r.perplexity),
            cell(r.bytes, f"{r.bytes / 1e6:,.2f}"),
            cell("stock" if r.stock else "custom"),
            cell(r.seconds, text(r.seconds, 1)),
        ]
        for r in order
    ]
    dense = "; ".join(
        f"{text(p.before)} in windows of {p.window}" for p in report.rows[0].perplexity
    )
    sentence = (
        "The lower a line, the better the method; all start at the dense model. Look at what was"
        " really removed, too: units are whole."
    )
    table = Table(
        "Every method (the best of each ratio is marked)",
        columns,
        rows,
        frozenset(n for n, r in enumerate(order) if any(r is one for one in best)),
        open=True,
    )
    lead = (
        f"{report.evaluated_on} The dense model has {dense}. Marked is, at each ratio, the method"
        " whose loss rose least for what it removed (log of perplexity over dense, by the square"
        " of the share). Weights are counted, not written; times leave"
        " out what all methods share."
    )
    if not report.rows[0].perplexity:
        return Section(
            "quality",
            "Which method won",
            "Perplexity was not measured: --evaluate FILE.txt does.",
            [],
            [table],
        )
    return Section(
        "quality",
        "Which method won",
        lead,
        [quality_plot(report, sentence, static=static)],
        [table],
    )


def cuts_of_all(report: Report) -> Section:
    """What each method takes from each layer."""
    plots = cut_plots(report)
    lead = "How much each method takes from each layer." if plots else "Not recorded."
    return Section("cut", "What was cut where", lead, plots)


def blends_of_all(report: Report) -> Section:
    """The blend of each method that fuses two scores."""
    plots = blend_plots(report)
    lead = (
        "How much each of two gradient scores counts, layer by layer."
        if plots
        else "No method here blends two scores differently by layer; hywia does."
    )
    return Section("blend", "Blend of coarse and fine scores (HyWIA)", lead, plots)
