"""Several methods on one model: a table for the terminal, a page with a chart for the browser."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..shown import one_line
from .blends import Blend, blend_chart
from .svg import plotted


@dataclass(frozen=True, slots=True)
class Trial:
    """One method (and repair, where that varies) at one ratio: what was removed, the numbers after.

    `perplexity` is by window length in tokens, `size` the weight files in MB, `seconds` wall time,
    `form` says whether the folder would be a stock or a custom checkpoint.
    """

    method: str
    ratio: float
    removed: float
    perplexity: Mapping[int, float]
    size: float
    seconds: float
    repair: str = ""
    form: str = ""

    @property
    def label(self) -> str:
        """Method and repair."""
        return f"{self.method} + {self.repair}" if self.repair else self.method


# Shares removed that differ by no more are taken for the same: half a point.
ALIKE = 0.005

# By repair, in the order in which they come.
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")


def trial_columns(windows: Sequence[int]) -> list[str]:
    """Headings of `trial_row`."""
    perplexities = [f"perplexity, window {window}" for window in windows]
    return ["method", "linears removed", *perplexities, "size, MB", "time, s", "form"]


def trial_row(trial: Trial) -> list[str]:
    """A trial as cells for people."""
    return [
        one_line(trial.label),
        f"{trial.removed:.1%}",
        *(f"{value:,.2f}" for value in trial.perplexity.values()),
        f"{trial.size:.2f}",
        f"{trial.seconds:.1f}",
        trial.form,
    ]


def chart(dense: Trial, trials: Sequence[Trial], window: int) -> str:
    """Perplexity over the share removed, one line a method, as SVG text."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    labels = list(dict.fromkeys(trial.label for trial in trials))
    methods = list(dict.fromkeys(trial.method for trial in trials))
    repairs = list(dict.fromkeys(trial.repair for trial in trials))
    figure = Figure(figsize=(9.2, max(4.2, 1 + 0.23 * len(labels))), layout="constrained")
    axes = figure.add_subplot()
    for label in labels:
        own = [trial for trial in trials if trial.label == label]
        points = [dense, *own]
        style = repairs.index(own[0].repair) % len(_LINES)
        shares = [100 * point.removed for point in points]
        values = [point.perplexity[window] for point in points]
        axes.plot(
            shares,
            values,
            marker=_MARKERS[style],
            linestyle=_LINES[style],
            color=f"C{methods.index(own[0].method)}",
            label=_literal(label),
        )
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high > 8 * low:  # labels of every tenth would run into one another
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlim(left=0)
    axes.legend(title="method", loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xlabel("parameters of the decoder's linears removed, %")
    axes.set_ylabel(f"perplexity per token, window {window} (log scale)")
    axes.grid(visible=True, which="both", alpha=0.25)
    return plotted(figure)


def _literal(name: str) -> str:
    """A name that matplotlib does not take for mathematics, nor for one to be left out."""
    text = one_line(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2420 }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #d8dedb }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 2px solid #2f6b4f; font-weight: 600 }
tr.best td { background: #e9f4ee; font-weight: 600 }
td:first-child { white-space: nowrap }
svg { max-width: 100%; height: auto } p.small { color: #55605b; font-size: .9rem }
/* on a phone, what is wide is moved and not made small */
div.wide { overflow-x: auto } div.wide svg { min-width: 36rem }
</style>
<h1>{{ title }}</h1>
<p>{{ about }}</p>
<div class="wide">{{ chart }}</div>
{% for heading, rows, best in tables %}
<h2>{{ heading }}</h2>
<div class="wide"><table><tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in rows %}<tr{% if loop.index0 == best %} class="best"{% endif %}>
{%- for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}
{% if blend %}
<h2>Blend of coarse and fine scores by layer</h2>
<p>Methods that fuse two gradient scores: the coarse one is one sum over a unit's weights times
gradients, the fine one the sum of the magnitudes. The dashed line is an equal blend.</p>
<div class="wide">{{ blend }}</div>
{% endif %}
<p class="small">{{ footnote }}</p>
</html>
"""


def page(
    title: str,
    about: str,
    footnote: str,
    dense: Trial,
    trials: Sequence[Trial],
    blends: Mapping[str, Blend] | None = None,
) -> str:
    """A page of its own: chart, then one table a ratio with the best method marked (`best_of`).

    `blends` are those of the methods that fuse two scores: see `blend_chart`.
    """
    from jinja2 import Environment

    windows = list(dense.perplexity)
    tables: list[tuple[str, Any, int]] = []
    for ratio in dict.fromkeys(trial.ratio for trial in trials):
        here = [trial for trial in trials if trial.ratio == ratio]
        rows = [trial_row(trial) for trial in (dense, *here)]
        tables.append(
            (f"{ratio:.0%} of the decoder's linears", rows, 1 + best_of(here, windows[0]))
        )
    drawn = chart(dense, trials, windows[0])
    template = Environment(autoescape=True).from_string(_PAGE)
    return template.render(
        title=title,
        about=about,
        footnote=footnote,
        chart=_inline(drawn),
        blend=_inline(blend_chart(blends)) if blends else "",
        columns=trial_columns(windows),
        tables=tables,
    )


def best_of(trials: Sequence[Trial], window: int) -> int:
    """Which of the trials has the lowest perplexity of those that removed as much as any.

    Units are whole, so that `ALIKE` less counts as the same; who removed less yet is no winner.
    """
    most = max(trial.removed for trial in trials)
    fair = [i for i, trial in enumerate(trials) if trial.removed >= most - ALIKE]
    return min(fair, key=lambda i: (math.isnan(p := trials[i].perplexity[window]), p))


def _inline(svg: str) -> Any:
    """An SVG file as part of a page."""
    from markupsafe import Markup

    return Markup(svg[svg.index("<svg") :])
