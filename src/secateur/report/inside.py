"""What a run saw on its way: scores, their blend and stability, repairs, the training."""

from collections.abc import Sequence

from .facts import text
from .kinds import kind_name, scored_name
from .outcome import perplexities
from .parts import Section, Table, cell, percent, short
from .plots import blend_plot, recovery_plot, repair_plots, scores_plots, spread_plot
from .value import Earlier, Report


def importance(report: Report) -> Section:
    """How the scores of units are spread."""
    title = "How important units are"
    if not report.importance:
        return Section(
            "importance", title, "No scores: the plan was given, or nothing is recorded."
        )
    sentence = (
        "Each line is the middle 90% of the units of a layer, the thick part the middle half, the"
        " dot the median. A layer that stands low has units that matter little."
    )
    spread = spread_plot(
        "importance-by-layer", "Importance by layer", sentence, report.importance, "score of a unit"
    )
    rows = [
        [cell("all" if s.layer is None else s.layer), cell(scored_name(s.kind)),
         *(cell(s.quantiles[n], short(s.quantiles[n])) for n in (1, 3, 5)),
         cell(sum(s.stay), f"{sum(s.stay):,}"), cell(sum(s.go), f"{sum(s.go):,}")]
        for s in report.importance
    ]  # fmt: skip
    table = Table(
        "Scores by layer and kind",
        ("layer", "units", "5% are below", "median", "95% are below", "stay", "go"),
        rows,
    )
    return Section(
        "importance",
        title,
        "A score says how much a unit matters to the model; the units with the lowest go first.",
        [spread, *scores_plots(report.importance)],
        [table],
    )


def blend(report: Report) -> Section:
    """How much each of two fused scores counts."""
    title = "Blend of coarse and fine scores (HyWIA)"
    if not report.blend:
        return Section("blend", title, "This method fuses no two scores; --method hywia does.")
    rows = [
        [
            cell(b.layer),
            cell(kind_name(b.kind)),
            cell(b.coarse, text(b.coarse)),
            cell(b.fine, text(b.fine)),
        ]
        for b in report.blend
    ]
    table = Table("Shares of the two scores", ("layer", "units", "coarse", "fine"), rows)
    lead = "How much each of two gradient scores counts, layer by layer."
    return Section(
        "blend", title, lead, [blend_plot("blend-plot", "Blend by layer", report.blend)], [table]
    )


def stability(report: Report) -> Section:
    """How unsteady scores are."""
    title = "Stability of importance (SAAP)"
    if not report.stability:
        return Section(
            "stability",
            title,
            "This method keeps no score by calibration window; --method saap does.",
        )
    sentence = (
        "How much a unit's score changes from one calibration window to the next, as a share of its"
        " mean. Layers that stand high are unstable: SAAP takes most from them."
    )
    plot = spread_plot(
        "stability-plot",
        "Instability by layer",
        sentence,
        report.stability,
        "standard deviation / mean",
    )
    rows = [
        [
            cell(s.layer),
            cell(scored_name(s.kind)),
            *(cell(s.quantiles[n], short(s.quantiles[n])) for n in (1, 3, 5)),
        ]
        for s in report.stability
    ]
    table = Table(
        "Instability by layer and kind",
        ("layer", "units", "5% are below", "median", "95% are below"),
        rows,
    )
    return Section("stability", title, sentence, [plot], [table])


def repair(report: Report) -> Section:
    """How well consumers could be fitted anew."""
    title = "Repair error and condition"
    if not report.repair:
        return Section("repair", title, "No linear was fitted anew: --repair refit does.")
    sentence = (
        "The error that the cut left in each layer's output (open) and after the repair (filled),"
        " on held-out windows: the longer the line, the more the repair brought back. What layers"
        " below lost is a part of it, so that one that lost nothing itself has an error too."
    )
    rows = [
        [
            cell(f.layer),
            cell(f.module.split(f".{f.layer}.", 1)[-1]),
            cell(f.before, percent(f.before)),
            cell(f.after, percent(f.after)),
            cell(f.condition, short(f.condition)),
            cell(f.damping, "bias alone" if f.damping is None else f"{f.damping:g}"),
            cell("yes" if f.fitted else "no: any fit was worse"),
        ]
        for f in report.repair
    ]
    table = Table(
        "Every linear that was fitted",
        ("layer", "linear", "error before", "error after", "condition", "damping", "fitted"),
        rows,
    )
    return Section("repair", title, sentence, repair_plots(report, sentence), [table])


def recovery(report: Report) -> Section:
    """A training after the cut."""
    title = "Recovery"
    done = report.recovery
    if done is None:
        return Section(
            "recovery",
            title,
            "The model was not trained after the cut: secateur recover DIR --out BETTER does.",
        )
    lead = (
        f"Trained by {done.recipe} ({done.trained}; {done.trained_parameters:,} parameters) on"
        f" {done.tokens:,} tokens in {done.examples:,} examples of {done.source}"
        f" ({done.held_out:,} held out), {done.steps:,} steps; the state after step"
        f" {done.best_step:,} is kept. {done.evaluated_on}"
    )
    sentence = (
        "Both should fall. Where the held-out loss rises again, training on would harm; the dashed"
        " line is the state that is kept."
    )
    checks = [
        [
            cell(c.step, f"{c.step:,}"),
            cell(c.trained, "" if c.trained is None else f"{c.trained:.4f}"),
            cell(c.held_out, text(c.held_out, 4)),
        ]
        for c in done.checks
    ]
    tables = [
        Table("Loss, nats a token", ("step", "training examples", "held-out examples"), checks)
    ]
    if done.perplexity:
        columns = ("window, tokens", "before the training", "after it", "times", "predicted tokens")
        tables.insert(
            0,
            Table(
                "Perplexity per token, before and after the training",
                columns,
                perplexities(done.perplexity),
            ),
        )
    if done.earlier:
        tables.append(_earlier(done.earlier))
    plots = [recovery_plot(done, sentence)] if done.checks else []
    return Section("recovery", title, lead, plots, tables)


def _earlier(done: Sequence[Earlier]) -> Table:
    """The trainings that came before this one, after the same cut."""
    columns = ("recipe", "steps", "kept, after step", "perplexity after it (window)")
    rows = [
        [
            cell(one.recipe),
            cell(one.steps, f"{one.steps:,}"),
            cell(one.best_step, f"{one.best_step:,}"),
            cell(", ".join(f"{text(p.after)} ({p.window})" for p in one.perplexity)),
        ]
        for one in done
    ]
    return Table("Trainings before this one", columns, rows)
