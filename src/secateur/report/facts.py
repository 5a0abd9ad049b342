"""The first answers of a report: smaller, faster, worse, which method, which layers; in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..structure import format_ranges
from .averages import Average, averages
from .comparing import at, by_model, near_ties, ratios, winner
from .plots import share_removed
from .value import Change, Perplexity, Report

MEASURE_SPEED = "secateur bench DIR --against MODEL"
NAME_TEXT = "--evaluate FILE.txt"


@dataclass(frozen=True)
class Fact:
    """One question, its answer in a few words, what it is made of, and what to type for more."""

    question: str
    answer: str
    detail: str
    command: str = ""


def facts(report: Report) -> list[Fact]:
    """What somebody wants to know first."""
    if report.kind == "compare":
        return [*_victories(report), *_left_out(report), _not_written()]
    found = [_smaller(report), _faster(report), _worse(report), *_trained(report)]
    if lost := lost_most(report):
        found.append(Fact("What went?", *lost))
    if report.method is not None:
        found.append(_method(report))
    return found


def headline(report: Report) -> str:
    """The same in one sentence."""
    if report.kind == "compare":
        models = by_model(averages(report.rows))
        won = {model: _by_ratio(own) for model, own in models.items()}
        several = len(models) > 1
        said = [f"{model}: {best}" if several else best for model, best in won.items() if best]
        return f"Least lost: {'; '.join(said)}." if said else "Perplexity was not measured."
    size = report.parameters
    parts = (
        [f"{report.model} lost {-share(size):.1%} of its parameters"] if size else [report.model]
    )
    if report.perplexity:
        one = max(report.perplexity, key=lambda one: one.window)
        parts.append(
            f"its perplexity went from {text(one.before)} to {text(one.after)} in windows of"
            f" {one.window:,} tokens"
        )
    trained = report.recovery
    if trained is not None and trained.perplexity:
        one = trained.perplexity[0]
        parts.append(
            f"a training then took that on its own text from {text(one.before)} to"
            f" {text(one.after)} in windows of {one.window:,}"
        )
    return f"{'; '.join(parts)}."


def share(change: Change | None) -> float:
    """By how much it rose, as a share of what it was."""
    if change is None or not change.before or change.after is None:
        return 0.0
    return change.after / change.before - 1


def text(value: float | None, digits: int = 2) -> str:
    """A number for people."""
    return "not finite" if value is None else f"{value:,.{digits}f}"


def lost_most(report: Report) -> tuple[str, str] | None:
    """(the layers that lost most, how much): None where no layer lost anything."""
    layers = sorted({one.layer for one in report.cut if one.layer is not None})
    lost = {n: share_removed(one for one in report.cut if one.layer == n) for n in layers}
    order = sorted(layers, key=lambda n: -lost[n])
    if not order or lost[order[0]] == 0:
        return None
    if lost[order[0]] - lost[order[-1]] < 0.05:
        range_ = f"from {lost[order[-1]]:.0%} to {lost[order[0]]:.0%} of their parameters"
        return "Nearly the same from every layer", range_
    first = [n for n in order[:3] if lost[n] > 0]
    names = _listed([str(n) for n in first])
    least = order[-1]
    whole = [n for n in layers if lost[n] == 0]
    last = f"least from layer {least}: {lost[least]:.0%}"
    if whole:
        last = f"nothing from layer{'s' if len(whole) > 1 else ''} {format_ranges(whole)}"
    return (
        f"Most from layer{'s' if len(first) > 1 else ''} {names}",
        f"{_listed([f'{lost[n]:.0%}' for n in first])} of their parameters; {last}",
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _smaller(report: Report) -> Fact:
    change, size = report.parameters, report.bytes
    detail = []
    if change is not None:
        detail.append(f"{text(change.before, 0)} parameters before, {text(change.after, 0)} after")
    if size is not None and size.before is not None and size.after is not None:
        detail.append(f"weights {size.before / 1e6:,.1f} MB, now {size.after / 1e6:,.1f} MB")
    if change is None and size is None:
        return Fact("Smaller?", "Not recorded", "the folder that was trained has no report")
    answer = f"{share(change or size):+.1%}".replace("-", "\N{MINUS SIGN}")
    return Fact("Smaller?", answer, "; ".join(detail))


def _faster(report: Report) -> Fact:
    if not report.speed:
        return Fact("Faster?", "Not measured", "to measure the two in turns, type", MEASURE_SPEED)
    best = next((one for one in report.speed if one.measured), report.speed[0])
    times = (best.before or 0) / max(best.after or 0, 1e-9)
    how = "measured" if best.measured else "predicted by a table of this model's shapes"
    return Fact(
        "Faster?",
        f"{times:.2f} times",
        f"a token took {text(best.before, 3)} ms, now {text(best.after, 3)} ms ({how}, context"
        f" {best.context:,}, batch {best.batch})",
    )


def _worse(report: Report) -> Fact:
    if not report.perplexity:
        return Fact("Worse?", "Not measured", "no text to take perplexity on; name one", NAME_TEXT)
    longest = max(report.perplexity, key=lambda one: one.window)
    return Fact("Worse?", _rise(longest), _perplexities(report.perplexity))


def _trained(report: Report) -> list[Fact]:
    done = report.recovery
    if done is None or not done.perplexity:
        return []
    detail = f"after {done.steps:,} steps, on held-out text of the training: "
    return [
        Fact("Trained since?", _rise(done.perplexity[0]), detail + _perplexities(done.perplexity))
    ]


def _perplexities(rows: Sequence[Perplexity]) -> str:
    numbers = "; ".join(
        f"{text(one.before)}, now {text(one.after)} in windows of {one.window:,} tokens"
        for one in rows
    )
    return f"perplexity {numbers}; lower is better"


def _rise(one: Perplexity) -> str:
    if not one.before or one.after is None:
        return "Perplexity is not finite"
    return f"Perplexity \N{MULTIPLICATION SIGN}{one.after / one.before:.2f}"


def _method(report: Report) -> Fact:
    method = report.method
    assert method is not None, "it was asked"
    parts = f"score {method.importance}, search {method.search}, repair {method.repair}"
    if report.contest:
        tried = len({(w.importance, w.search, w.repair) for w in report.contest})
        return Fact(
            "Which method?",
            f"{method.importance}, {method.search}",
            f"nearest to the dense model of the {tried} that {method.name} tried: {parts}",
        )
    why = "nothing else was tried"
    return Fact("Which method?", method.name, f"{parts}; {why}")


def _by_ratio(means: Sequence[Average]) -> str:
    """Who won at each ratio: `flap at 20%; hywia at 50%`; nothing, if it was not measured."""
    best = [(ratio, winner(at(means, ratio))) for ratio in ratios(means)]
    return "; ".join(f"{one.label} at {ratio:.0%}" for ratio, one in best if one is not None)


def _victories(report: Report) -> list[Fact]:
    """Of one model who won at each ratio, of several who won on each."""
    means = averages(report.rows)
    models = by_model(means)
    if len(models) == 1:
        return [who_won(at(means, ratio), f"Which won at {ratio:.0%}?") for ratio in ratios(means)]
    return [_won_on(model, own) for model, own in models.items()]


def _won_on(model: str, means: Sequence[Average]) -> Fact:
    """Who won on one of several models, at all ratios."""
    best = [(ratio, winner(at(means, ratio))) for ratio in ratios(means)]
    won = [(ratio, one) for ratio, one in best if one is not None]
    if not won:
        return Fact(f"Which won on {model}?", "Not measured", "name a text", NAME_TEXT)
    names = list(dict.fromkeys(one.label for _, one in won))
    first = won[0][1]
    window = first.windows[0]
    after = "; ".join(f"{one.at(window)} at {ratio:.0%}" for ratio, one in won)
    return Fact(
        f"Which won on {model}?",
        names[0] if len(names) == 1 else _by_ratio(means),
        f"perplexity {first.at(window, before=True)}, then {after}; windows of {window:,}",
    )


def who_won(means: Sequence[Average], question: str) -> Fact:
    """Who won among those of one model and ratio."""
    best = winner(means)
    if best is None:
        return Fact(question, "Not measured", "name a text", NAME_TEXT)
    window = best.windows[0]
    near = near_ties(means)
    verb = "is" if len(near) == 1 else "are"
    seeded = len(best.runs) > 1
    how = "within 2% of perplexity" + " or what seeds make of it" * seeded
    tied = f"; {_listed([one.label for one in near])} {verb} as good, {how}" if near else ""
    seeds = f" (mean of {len(best.runs)} seeds)" if seeded else ""
    lower = [one for one in means if one not in near and _lost_less(one, best, window)]
    less = f"; {_listed([one.label for one in lower])} lost less, and removed less" if lower else ""
    return Fact(
        question,
        best.label,
        f"perplexity {best.at(window, before=True)}, then {best.at(window)}{seeds} in windows of"
        f" {window:,}; {best.removed:.1%} of the linears' parameters went{tied}{less}",
    )


def _lost_less(one: Average, other: Average, window: int) -> bool:
    """Whether the perplexity of `one` is below that of `other`, and less of it was removed."""
    own, its = one.after(window).mean, other.after(window).mean
    return own is not None and its is not None and own < its and one.removed < other.removed


def _left_out(report: Report) -> list[Fact]:
    if not report.left_out:
        return []
    died = sum(one.died for one in report.left_out)
    refused = len(report.left_out) - died
    parts = [f"{refused} refused"] * bool(refused) + [f"{died} died"] * bool(died)
    total = len(report.left_out) + len(report.rows)
    return [
        Fact("Left out?", f"{len(report.left_out)} of {total} runs", f"{_listed(parts)}; see below")
    ]


def _not_written() -> Fact:
    return Fact(
        "Faster?",
        "Not measured",
        "a comparison writes no model; of one that is written, type",
        MEASURE_SPEED,
    )
