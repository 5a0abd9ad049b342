"""Several methods on one model: rows of a table, and a chart that needs no browser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..shown import one_line
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
