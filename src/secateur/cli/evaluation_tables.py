"""What an evaluation found, as tables: every number with its standard error."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .screen import say, table

if TYPE_CHECKING:
    from ..evaluation import Estimate, Perplexity
    from ..pipeline import Evaluation

_MEANS = {
    "acc": "mean of acc",
    "acc_norm": "mean of acc_norm, else acc",
    "papers": "mean, acc_norm of HellaSwag and OBQA",
}


def evaluation_tables(found: "Evaluation", model: str, against: str | None) -> None:
    """Print tables of what there is."""
    from ..data import evaluated_part
    from ..report import bos_line

    text = found.text
    if text is not None and found.perplexities:
        part = evaluated_part(text)
        title = f"{model} on {text}, {part}" if part else f"{model} on {text}"
        _perplexity(found, title)
        say(bos_line({"bos": found.begin.to_json() if found.begin else None}))
    if found.tasks:
        beside = f" beside {against}" if against else ""
        _tasks(found, f"{model}{beside}, zero-shot tasks")
    for one in found.continuations:
        lines = {"prompt": one.prompt, "dense": one.dense, model: one.text}
        rows = [(name, text) for name, text in lines.items() if text is not None]
        table("Continued greedily", ("", "text"), rows, texts=(0, 1), lines=True)


def _perplexity(found: "Evaluation", title: str) -> None:
    heads = ["window, tokens", "perplexity per token", "predicted tokens"]
    rows = [[str(p.window), _of(p), f"{p.tokens:,}"] for p in found.perplexities]
    if found.agreement:
        heads[2:2] = ["of the dense model", "KL, nats a token", "same top-1"]
        for row, dense, one in zip(rows, found.dense_perplexities, found.agreement, strict=True):
            row[2:2] = [_of(dense), _plain(one.divergence, 4), _percent(one.top1)]
    table(title, heads, rows)
    say("± is one standard error, over windows.")


def _tasks(found: "Evaluation", title: str) -> None:
    heads = ["task", "items", "metric", "value"]
    rows = list(_task_rows(found))
    if found.dense_tasks:
        heads += ["dense", "change"]
    table(title, heads, rows, texts=(0, 2))
    say("± is one standard error, over items; of a mean of tasks, from those of the tasks.")


def _task_rows(found: "Evaluation") -> Iterator[list[str]]:
    dense = {one.name: one for one in found.dense_tasks}
    changes = found.task_changes
    for one in found.tasks:
        for metric, estimate in one.metrics.items():
            row = [one.name, f"{one.items:,}", metric, _value(metric, estimate)]
            if one.name in dense:
                change: Mapping[str, Estimate] = changes.get(one.name, {})
                moved = _signed(change[metric]) if metric in change else ""
                row += [_value(metric, dense[one.name].metrics[metric]), moved]
            yield row
    for name, estimate in found.means.items():
        own = [_MEANS[name], "", "", _percent(estimate)]
        yield own + ([_percent(found.dense_means[name]), ""] if dense else [])


def _of(one: "Perplexity") -> str:
    return f"{one.value:.3f}" + ("" if one.error is None else f" ± {one.error:.3f}")


def _plain(one: "Estimate", digits: int) -> str:
    error = "" if one.error is None else f" ± {one.error:.{digits}f}"
    return f"{one.value:.{digits}f}{error}"


def _percent(one: "Estimate") -> str:
    error = "" if one.error is None else f" ± {100 * one.error:.1f}"
    return f"{100 * one.value:.1f}%{error}"


def _signed(one: "Estimate") -> str:
    error = "" if one.error is None else f" ± {100 * one.error:.1f}"
    return f"{100 * one.value:+.1f}%{error}"


def _value(metric: str, one: "Estimate") -> str:
    """Shares in per cent, all else as it is."""
    share = metric.startswith(("acc", "exact_match")) and 0 <= one.value <= 1
    return _percent(one) if share else _plain(one, 4)
