"""What came of a run: the text it writes, what was cut, which method won, how much worse."""

from collections.abc import Sequence

from .facts import lost_most, text
from .kinds import kind_name
from .parts import Cell, Section, Table, cell
from .plots import contest_plot, cut_plot, kinds_of, searched
from .value import Perplexity, Report, Way

# Ways whose divergences differ by less may change places with another seed.
_CLOSE = 0.03


def samples(report: Report) -> Section:
    """The same prompts, gone on with by both models."""
    lead = (
        "Each model goes on from the same words, always with the likeliest token. It is cut off"
        " after a few dozen of them, which is why most texts break off."
        if report.samples
        else "No text was written: that is for models that are small enough to be loaded whole, and"
        " have a tokenizer. Load this one and try: secateur.load(DIR)."
    )
    return Section("samples", "What it writes now", lead, samples=bool(report.samples))


def cut(report: Report) -> Section:
    """Units kept by layer and kind."""
    lost = lost_most(report)
    if lost is None:
        return Section("cut", "What was cut where", "Nothing was removed, or nothing is recorded.")
    several = len(kinds_of(report.cut)) > 1
    whole = "all kinds together: the line across its bars" if several else "the one kind here"
    sentence = (
        f"{lost[0]} ({lost[1]}), {whole}. A bar is the share of one kind's parameters that went."
    )
    rows = [
        [
            cell("all" if one.layer is None else one.layer),
            cell(kind_name(one.kind)),
            cell(one.kept, f"{one.kept:,} of {one.of:,}", one.kept / max(one.of, 1)),
            cell(
                one.removed / max(one.parameters, 1), f"{one.removed / max(one.parameters, 1):.1%}"
            ),
            cell(one.removed, f"{one.removed:,}"),
        ]
        for one in report.cut
    ]
    columns = ("layer", "units", "kept", "share removed", "parameters removed")
    table = Table("Units kept by layer and kind; the bar is the share that stays", columns, rows)
    plots = [cut_plot(report.cut, sentence)] if any(c.layer is not None for c in report.cut) else []
    return Section("cut", "What was cut where", sentence, plots, [table])


def contest(report: Report) -> Section:
    """The parts of the method, and what they won against."""
    title = "Which method won"
    method = report.method
    if method is None:
        return Section("method", title, "The plan was given: no method was chosen in this run.")
    parts = f"score {method.importance}, search {method.search}, repair {method.repair}"
    if not report.contest:
        return Section(
            "method",
            title,
            f"{method.name} ({parts}). Nothing else was tried: --method best --effort good"
            " compares several.",
        )
    known = [way for way in report.contest if way.divergence is not None]
    if not known:
        lead = f"{method.name} ({parts}). No number of what was tried is finite."
        return Section("method", title, lead)
    twice = len({way.windows for way in known}) > 1
    most = max((way.windows for way in known), default=0)
    known.sort(key=lambda way: (-way.windows, way.divergence or 0.0))
    sentence = (
        f"{method.importance} with {method.search} won{_close(known, most)}: of those fitted on all"
        " windows it is nearest to the dense model, on calibration windows that no fit saw. Further"
        " left is better"
        + ("; all were tried on a few windows, the best two again on all." if twice else ".")
    )
    if len({way.profile for way in known}) > 1:
        sentence += " What is free is bound by no profile, and not for taking."
    rows = [
        [cell(w.importance), cell(searched(w, known)), cell(w.divergence, f"{w.divergence:.3g}"),
         cell(w.windows, f"{w.windows:,}"), cell(w.repair)]
        for w in known if w.divergence is not None
    ]  # fmt: skip
    own = (method.importance, method.search)
    won = [n for n, w in enumerate(known) if w.windows == most and (w.importance, w.search) == own]
    table = Table(
        "What was tried (the winner is marked)",
        ("score", "search", "KL to dense, nats", "windows", "repair"),
        rows,
        frozenset(won[:1]),
    )
    return Section("method", title, sentence, [contest_plot(known, sentence)], [table])


def _close(known: Sequence[Way], most: int) -> str:
    """By how little, if it is less than what a seed makes of it: known from the nearest on."""
    bound = len({one.profile for one in known}) > 1
    final = [w for w in known if w.windows == most and not (bound and w.profile == "free")]
    if len(final) < 2 or not final[0].divergence:
        return ""
    more = (final[1].divergence or 0.0) / final[0].divergence - 1
    if more >= _CLOSE:
        return ""
    name = f"{final[1].importance} with {final[1].search}"
    return f" by a hair ({name} is {more:.1%} further, and another seed may turn that)"


def quality(report: Report) -> Section:
    """Perplexity before and after."""
    title = "How much worse"
    if not report.perplexity:
        return Section("quality", title, "Perplexity was not measured: --evaluate FILE.txt does.")
    table = Table(
        "Perplexity per token",
        ("window, tokens", "dense", "pruned", "times", "predicted tokens"),
        perplexities(report.perplexity),
    )
    lead = f"{report.evaluated_on} Lower is better; 1.00 times would be as good as the dense model."
    return Section("quality", title, lead, [], [table])


def perplexities(rows: Sequence[Perplexity]) -> list[list[Cell]]:
    """A row for each window length."""
    out = []
    for one in rows:
        times = one.after / one.before if one.before and one.after is not None else None
        out.append([
            cell(one.window, f"{one.window:,}"),
            cell(one.before, text(one.before)), cell(one.after, text(one.after)),
            cell(times, text(times)), cell(one.tokens, f"{one.tokens:,}"),
        ])  # fmt: skip
    return out
