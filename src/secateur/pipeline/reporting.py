"""report.json and report.html of a run: what it knows already, in small numbers.

Nothing that a passer-by should not see: texts and models by their names, no place on a machine.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import belongs, token
from ..config import TRAINED, RecoverConfig
from ..errors import SecateurError
from ..export import without_place, without_places
from ..models import OpenModel, StreamedModel
from ..progress import note, timed
from ..report import (
    QUANTILES,
    Blend,
    Calibration,
    Cut,
    Fit,
    Method,
    Recovery,
    Report,
    Scores,
    Speed,
    Stability,
    evaluation_line,
    html,
    layer_numbers,
    read_report,
)
from ..search.stability import fluctuation
from ..structure import Axis, Plan, Structure
from .contest import Chosen
from .continuing import samples
from .idle import seen_settings, unread_recovery_settings
from .passes import hidden_bytes
from .record import settings_in_force, versions
from .student import Student
from .subject import Subject
from .texts import Texts

_BINS = 24


def report_run(
    folder: Path,
    subject: Subject,
    best: Chosen | None,
    plan: Plan,
    small: StreamedModel,
    numbers: Mapping[str, Any],
    texts: Texts,
) -> None:
    """Write the report of a run that cut."""
    with not_worth_the_run():
        own, config = subject.opened, subject.config
        written = samples(
            own,
            (subject.source, small),
            prompts=config.prompts,
            limit=hidden_bytes(config.hidden_gib),
            store=subject.store,
            tokenizer=subject.tokenizer,
        )
        settings = settings_in_force(subject.settled)
        write_report(
            folder,
            Report(
                kind="prune",
                model=own.name,
                **_results(numbers, settings),
                method=_method(subject, best),
                contest=numbers.get("contest", ()),
                cut=tuple(cuts_of(subject.structure, plan)),
                **_looked_at(subject, best, plan),
                repair=tuple(fits_of(own.structures, numbers.get("repair", ()))),
                samples=written,
                seed=config.seed,
                calibration=calibration_of(texts.to_json()),
                settings=public_settings(settings),
                versions=versions(),
            ),
        )


def report_recovery(
    folder: Path,
    student: Student,
    small: StreamedModel,
    config: RecoverConfig,
    numbers: Mapping[str, Any],
) -> None:
    """Write the report of a training: that of the folder that was trained, and what came of it."""
    with not_worth_the_run():
        opened = student.opened
        settings = seen_settings(config.model_dump(), unread_recovery_settings(config))
        earlier = _earlier(opened) or Report(kind="recover", model=opened.name)
        update: dict[str, Any] = {
            "kind": "recover",
            "recovery": recovery_of(numbers, settings),
            "samples": samples(
                opened,
                (student.source, small),
                prompts=config.prompts,
                limit=hidden_bytes(config.hidden_gib),
                store=student.store,
            ),
            "class_name": numbers["form"]["class"],
            "why_not_stock": numbers["form"]["why_not_stock"],
            "versions": versions(),
        }
        if earlier.bytes is not None:
            after = {"after": numbers["bytes"]["after"]}
            update["bytes"] = earlier.bytes.model_copy(update=after)
        write_report(folder, earlier.model_copy(update=update))


def write_report(folder: Path, report: Report) -> None:
    """Write report.json, and the page that is drawn from it."""
    with timed("report"):
        _write_whole(folder / "report.json", report.to_json())
        _write_whole(folder / "report.html", html(report))


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is whole or not there; until it is, what was there before stays."""
    partial = path.with_name(f".{path.name}-{token()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def not_worth_the_run() -> Iterator[None]:
    """Hours of work are not lost by what is wrong with a picture of them: it is told."""
    try:
        yield
    except Exception as error:
        why = (str(error).splitlines() or [""])[0]
        note(f"the report could not be written: {type(error).__name__}, {why}")


def redraw(folder: Path) -> Path:
    """Draw report.html again from the report.json in `folder`; the page's path.

    Raises:
        SecateurError: there is none, or none of this version.
    """
    page = folder / "report.html"
    _write_whole(page, html(read_report(folder / "report.json")))
    return page


def cuts_of(structure: Structure, plan: Plan) -> list[Cut]:
    """What stays of each axis."""
    return [
        Cut(
            layer=row["layer"],
            kind=row["granularity"],
            kept=row["kept"],
            of=row["of"],
            units_kept=row["units_kept"],
            units=row["units"],
            parameters=axis.units * axis.cost,
            removed=len(plan.removed(axis)) * axis.cost,
        )
        for axis, row in zip(structure.axes, layer_numbers(structure, plan), strict=True)
    ]


def scores_of(axes: Sequence[Axis], scores: Mapping[str, Tensor], plan: Plan) -> list[Scores]:
    """How the scores of each axis are spread, and which go; bins are those of their kind."""
    values = {axis: _units(axis, scores[axis.name]) for axis in axes if axis.name in scores}
    found = []
    for kind in dict.fromkeys(axis.granularity for axis in values):
        own = {axis: one for axis, one in values.items() if axis.granularity == kind}
        edges = _edges(torch.cat(list(own.values())))
        if edges is None:
            continue
        for axis, one in own.items():
            gone = plan.removed_tensor(axis)
            stay = torch.ones(len(one), dtype=torch.bool).index_fill(0, gone, False)
            found.append(
                Scores(
                    **_place(axis),
                    quantiles=_quantiles(one),
                    edges=tuple(edges.tolist()),
                    stay=_counts(one[stay], edges),
                    go=_counts(one[~stay], edges),
                )
            )
    return found


def _units(axis: Axis, scores: Tensor) -> Tensor:
    """One number a unit, fp64 [unit]."""
    return scores.detach().cpu().double().reshape(axis.units, -1).sum(dim=1)


def _edges(values: Tensor) -> Tensor | None:
    """Ends of bins, even in the logarithm where all values are above zero; None of no number."""
    values = values[values.isfinite()]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > low:
        edges = torch.linspace(math.log(low), math.log(high), _BINS + 1, dtype=torch.float64).exp()
        edges[0], edges[-1] = low, high
        return edges
    reach = (high - low) or abs(high) or 1.0
    return torch.linspace(low, low + reach, _BINS + 1, dtype=torch.float64)


def _counts(values: Tensor, edges: Tensor) -> tuple[int, ...]:
    """How many values are between each two edges; the last bin has its end, too."""
    values = values[values.isfinite()]
    bins = (torch.searchsorted(edges, values, right=True) - 1).clamp(0, len(edges) - 2)
    return tuple(torch.bincount(bins, minlength=len(edges) - 1).tolist())


def _quantiles(values: Tensor) -> tuple[float, ...]:
    at = torch.tensor(QUANTILES, dtype=torch.float64)
    # torch.quantile ends at 16 million values
    order = values.sort().values
    places = at * (len(order) - 1)
    low, high = places.floor().long(), places.ceil().long()
    found = torch.lerp(order[low], order[high], places - low)
    return tuple(float(one) for one in found)


def _place(axis: Axis) -> dict[str, Any]:
    return {"layer": axis.layer if axis.layer >= 0 else None, "kind": axis.granularity}


def blends_of(structure: Structure, blend: Mapping[str, Mapping[str, float]] | None) -> list[Blend]:
    """The blend by place."""
    known = structure.by_name
    return [
        Blend(**_place(known[name]), coarse=one["coarse"], fine=one["fine"])
        for name, one in (blend or {}).items()
        if name in known
    ]


def stability_of(structure: Structure, by_sample: Mapping[str, Tensor] | None) -> list[Stability]:
    """How unsteady the scores [sample, unit] of each axis are."""
    return [
        Stability(**_place(structure.by_name[name]), quantiles=_quantiles(fluctuation(own).cpu()))
        for name, own in (by_sample or {}).items()
        if name in structure.by_name and len(own) > 1
    ]


def fits_of(structure: Structure, reports: Iterable[Mapping[str, Any]]) -> list[Fit]:
    """What a repair says of each consumer, by place."""
    places = {m.module: _place(a) for a in structure.axes if not a.of for m in a.consumers}
    names = ("module", "target", "damping", "condition", "before", "after", "fitted")
    return [
        Fit(**places[one["module"]], **{name: one[name] for name in names})
        for one in reports
        if one["module"] in places
    ]


def speeds_of(budget: Mapping[str, Any]) -> list[Speed]:
    """The times of a token, where a budget of time asked for them."""
    if budget.get("unit") != "ms":
        return []
    shared = {"context": budget["context"], "batch": budget["batch"]}
    times = {False: budget, **({True: budget["measured"]} if "measured" in budget else {})}
    return [
        Speed(before=one["before"], after=one["after"], measured=measured, **shared)
        for measured, one in times.items()
    ]


def calibration_of(found: Mapping[str, Any] | None) -> Calibration | None:
    """Which windows were read."""
    if found is None:
        return None
    return Calibration(
        text=str(without_place(found["text"])),
        windows=found["windows"],
        length=found["length"],
        sha256=found["tokens_sha256"],
    )


def recovery_of(numbers: Mapping[str, Any], settings: Mapping[str, Any]) -> Recovery:
    """What a training was, and what came of it."""
    data = numbers["data"]
    return Recovery(
        recipe=settings["recipe"],
        trained=TRAINED[numbers["trained"]].summary,
        trained_parameters=numbers["trained_parameters"],
        **{name: data[name] for name in ("examples", "held_out", "tokens", "sha256")},
        source=without_places(str(data["source"]), settings),
        steps=numbers["steps"],
        best_step=numbers["best_step"],
        checks=numbers["checks"],
        perplexity=numbers["perplexity"],
        evaluated_on=without_places(evaluation_line(numbers), settings),
        bytes=numbers["bytes"],
        settings=public_settings(settings),
        earlier=numbers.get("earlier", ()),
    )


def _results(numbers: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a run as parts of its report."""
    return {
        "class_name": numbers["form"]["class"],
        "why_not_stock": numbers["form"]["why_not_stock"],
        "parameters": numbers["parameters"],
        "linears": numbers["prunable_parameters"],
        "bytes": numbers["bytes"],
        "perplexity": numbers.get("perplexity", ()),
        "evaluated_on": without_places(evaluation_line(numbers), settings),
        "speed": speeds_of(numbers.get("budget", {})),
    }


def _method(subject: Subject, best: Chosen | None) -> Method | None:
    """The parts in force; None where a plan was given."""
    config = subject.config
    if best is None:
        return None
    score = config.importance_name or config.fusion_name or ""
    return Method(
        name=config.method,
        importance=score,
        search=config.search_name,
        repair=config.repair_name,
    )


def _looked_at(subject: Subject, best: Chosen | None, plan: Plan) -> dict[str, Any]:
    """What scores were, where there are some; of coarse units those of the finer ones in them."""
    if best is None:
        return {}
    whole, found = subject.opened.structures, best.scores
    return {
        "importance": scores_of(subject.scored, found.scores, plan),
        "blend": blends_of(whole, found.blend),
        "stability": stability_of(whole, found.by_sample),
    }


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without places on this machine."""
    return {name: without_place(value) for name, value in settings.items()}


def _earlier(opened: OpenModel) -> Report | None:
    """The report of the folder that was trained, if it has one that can be read."""
    folder = opened.folder
    with suppress(SecateurError):
        if folder is not None and belongs(folder, "report.json"):
            return read_report(folder / "report.json")
    return None
