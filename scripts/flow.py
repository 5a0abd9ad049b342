"""Draws docs/flow.svg, and writes the table beside it in docs/architecture.md: what `prune` does.

    python scripts/flow.py

Both are read off the body of `prune` itself: each call of a stage, where it stands, what goes in
and what comes out. So they are true, or `tests/test_flow.py` fails.
"""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from secateur.pipeline import pruning
from secateur.report.svg import Drawing

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- flow: begin (made by scripts/flow.py) -->", "<!-- flow: end -->"
WIDTH, STEP, BOX = 700, 108, 74


@dataclass(frozen=True)
class Stage:
    """One call: the function, its file, the names that go in and come out, and what it is for."""

    name: str
    file: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    purpose: str


def stages(module: ModuleType, function: str) -> list[Stage]:
    """The stages that a function of `module` calls, in order."""
    tree = ast.parse(inspect.getsource(module))
    homes = {
        alias.name: node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    body = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    found = []
    for call, gives in _calls(body.body):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if name not in homes:
            continue
        doc = inspect.getdoc(getattr(module, name)) or ""
        purpose = doc.split("\n\n")[0].replace("\n", " ")
        file = f"pipeline/{homes[name]}.py"
        found.append(Stage(name, file, tuple(_names(call)), gives, purpose))
    return found


def _calls(body: list[ast.stmt]) -> Iterator[tuple[ast.Call, tuple[str, ...]]]:
    """Calls whose value is kept, and those of a `with`, in the order they run."""
    for node in body:
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            value = node.value.func.value if _chained(node.value) else node.value
            if isinstance(value, ast.Call):
                yield value, tuple(dict.fromkeys(n for t in targets for n in _names(t)))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node.value, ()
        elif isinstance(node, ast.With):
            for item in node.items:
                if isinstance(item.context_expr, ast.Call):
                    kept = _names(item.optional_vars) if item.optional_vars else ()
                    yield item.context_expr, tuple(kept)
            yield from _calls(node.body)
        elif isinstance(node, ast.If) and not any(isinstance(n, ast.Return) for n in node.body):
            yield from _calls(node.body)  # a way out is no stage


def _chained(value: ast.expr) -> bool:
    """Whether it is `stage(...).of(...)`: one stage, of which a part is taken."""
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and isinstance(value.func.value, ast.Call)
    )


def _names(node: ast.AST) -> Iterator[str]:
    """The names in an expression that are values of the recipe, each once."""
    called = {n.func for n in ast.walk(node) if isinstance(n, ast.Call)}
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name) and n not in called]
    yield from dict.fromkeys(n.id for n in sorted(names, key=lambda n: (n.lineno, n.col_offset)))


def table(found: list[Stage]) -> str:
    """The stages as a table."""
    lines = ["| stage | where | takes | gives |", "|---|---|---|---|"]
    lines += [
        f"| `{one.name}` | `{one.file}` | {', '.join(one.takes)} | {', '.join(one.gives)} |"
        for one in found
    ]
    return "\n".join(lines)


def picture(found: list[Stage]) -> str:
    """The stages from top to bottom, and on the arrows the values that pass."""
    drawing = Drawing()
    for number, one in enumerate(found):
        top = 20 + number * STEP
        drawing.rect(20, top, WIDTH - 40, BOX, rx=8, fill="#eef5f0", stroke="#2f6b4f")
        drawing.text(36, top + 30, one.name, size=20, weight="600", more=one.file)
        takes = f"takes {', '.join(one.takes)}" if one.takes else "takes nothing"
        drawing.text(36, top + 56, takes, size=16, fill="#3c4742")
        if number + 1 < len(found):
            drawing.arrow((60, top + BOX), (60, top + STEP - 2), stroke="#8a9691", stroke_width=2)
            given = ", ".join(one.gives) or "-"
            drawing.text(76, top + BOX + 22, given, size=16, fill="#2f6b4f", weight="600")
    height = 20 + len(found) * STEP
    return drawing.render(WIDTH, height, "The stages of prune, and what passes between them")


def page(text: str, found: list[Stage]) -> str:
    """A page with the table between its marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}"


def main() -> None:
    """Write both."""
    found = stages(pruning, "prune")
    (DOCS / "flow.svg").write_text(picture(found), encoding="utf-8")
    architecture = DOCS / "architecture.md"
    architecture.write_text(page(architecture.read_text("utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
