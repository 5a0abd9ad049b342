"""report.html: one file, drawn from the value in report.json and from nothing else.

Plots are Vega-Lite's, and the libraries that draw them stand in the page: nothing is fetched, and
a policy in its head forbids it. Without vl-convert-python (the extra `report`) the tables stand
alone, with the static pictures that matplotlib draws.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from ..shown import one_line
from .facts import facts, headline
from .plotting import Plot
from .sections import sections
from .value import Report
from .words import words

_TITLES = {"prune": "pruned", "recover": "pruned and recovered", "compare": "methods compared"}
_INSTALL = 'pip install "secateur[report]"'


def html(report: Report) -> str:
    """The page of a report, as text."""
    from markupsafe import Markup

    library = plotting_library()
    parts = sections(report, static=library is None)
    plots = [plot for part in parts for plot in part.plots]
    return _template().render(
        title=f"{one_line(report.model)}, {_TITLES[report.kind]}",
        headline=headline(report),
        facts=facts(report),
        sections=[part for part in parts if not part.empty],
        missing=[part for part in parts if part.empty],
        report=report,
        words=words(report),
        install=None if library is not None else _INSTALL,
        library=Markup(library or ""),
        specs=_data({plot.name: _described(plot) for plot in plots if library is not None}),
        style=Markup(_file("page.css")),
        script=Markup(_file("page.js")),
    )


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline_svg"] = lambda text: Markup(text[text.index("<svg") :])
    return environment.from_string(_file("page.html"))


@cache
def plotting_library() -> str | None:
    """Vega, Vega-Lite and Vega-Embed as one script; None without the package that brings them."""
    try:
        import vl_convert
    except ImportError:
        return None
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", r"<\/script")


def _described(plot: Plot) -> dict[str, Any]:
    """With what a screen reader says of it."""
    return {**plot.spec, "description": f"{plot.title}. {plot.sentence}"}


def _data(value: Any) -> Any:
    """JSON that can stand in a script: nothing in it ends the element, or opens a comment."""
    from markupsafe import Markup

    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _file(name: str) -> str:
    return (files(__package__) / "page_files" / name).read_text(encoding="utf-8")
