"""A little SVG: shapes and texts collected in order, rendered once."""

import io
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape, quoteattr

Point = tuple[float, float]

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


@dataclass
class Drawing:
    """Shapes in the order they are drawn."""

    parts: list[str] = field(default_factory=list)

    def add(self, tag: str, **attributes: object) -> None:
        """One element; `stroke_width` becomes stroke-width, None is left out, `body` is inside."""
        body = attributes.pop("body", "")
        given = {
            name.replace("_", "-"): _number(value)
            for name, value in attributes.items()
            if value is not None
        }
        text = "".join(f" {name}={quoteattr(value)}" for name, value in given.items())
        self.parts.append(f"<{tag}{text}>{body}</{tag}>" if body else f"<{tag}{text}/>")

    def rect(self, x: float, y: float, width: float, height: float, **style: object) -> None:
        """A rectangle."""
        self.add("rect", x=x, y=y, width=width, height=height, **style)

    def path(self, commands: str, **style: object) -> None:
        """A path; without `fill` it is a line."""
        self.add("path", d=commands, **{"fill": "none", **style})

    def arrow(self, *points: Point, **style: object) -> None:
        """A line through points with a head at its end."""
        self.path(through(points), marker_end="url(#head)", **style)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float,
        fill: str = "#1c2420",
        weight: str | None = None,
        anchor: str | None = None,
        halo: bool = False,
        more: str = "",
    ) -> None:
        """Text on the baseline `y`; a halo keeps it readable on what lies below.

        What is `more` follows it, smaller and paler.
        """
        rest = (
            f'<tspan dx="12" font-size="15" fill="#5a6661" font-weight="400">{escape(more)}</tspan>'
        )
        around: dict[str, Any] = {}
        if halo:
            around = {
                "stroke": "#ffffff",
                "stroke_width": 4,
                "paint_order": "stroke",
                "stroke_linejoin": "round",
            }
        self.add(
            "text",
            body=escape(words) + (rest if more else ""),
            x=x,
            y=y,
            font_size=size,
            fill=fill,
            font_weight=weight,
            text_anchor=anchor,
            **around,
        )

    def render(self, width: float, height: float, title: str) -> str:
        """The file's text."""
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
            f' viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}" role="img">\n'
            f"<title>{escape(title)}</title>\n"
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
            ' markerHeight="7" orient="auto-start-reverse">'
            '<path d="M0 1 L9 5 L0 9 z" fill="#8a9691"/></marker></defs>\n'
            '<rect width="100%" height="100%" fill="#ffffff"/>\n'
            f"{body}\n</svg>\n"
        )


def plotted(figure: Any) -> str:
    """A figure of matplotlib as SVG text: the same bytes of the same data."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": "secateur"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def through(points: tuple[Point, ...]) -> str:
    """Path commands of a line through points."""
    return "M" + " L".join(f"{_number(x)} {_number(y)}" for x, y in points)


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
