"""Writes src/secateur/config/typed.py: the settings as types that a type checker knows.

    python scripts/typed_settings.py

The models in config/ say what there is; a test says when this must be run again.
"""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from secateur.config import BenchConfig, PruneConfig, RecoverConfig

FILE = Path(__file__).parent.parent / "src" / "secateur" / "config" / "typed.py"
# Texts may be given themselves: strings, rows, a data set, tokens.
TEXTS = ("calibration", "evaluate", "data")
_HEAD = '''"""The settings as types: `secateur.prune("m", rato=3)` is an error to a type checker.

Made by scripts/typed_settings.py from the models beside this file; do not edit it.
"""

from typing import Any, Literal, TypedDict
'''


def made() -> str:
    """The text of the file."""
    classes = (
        _typed("PruneSettings", PruneConfig, "Settings of `secateur.prune`."),
        _typed("RecoverSettings", RecoverConfig, "Settings of `secateur.recover`."),
        _typed("BenchSettings", BenchConfig, "Settings of `secateur.bench`."),
    )
    return "\n\n".join((_HEAD, *classes))


def _typed(name: str, model: type[BaseModel], summary: str) -> str:
    fields = [
        f"    {field}: {'Any' if field in TEXTS else _written(about.annotation)}"
        for field, about in model.model_fields.items()
        if field != "model"
    ]
    lines = [f"class {name}(TypedDict, total=False):", f'    """{summary}"""', "", *fields]
    return "\n".join(lines) + "\n"


def _written(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"typing\.", "", text).replace("'", '"')
    return re.sub(r"Optional\[(Literal\[[^]]*\])\]", r"\1 | None", text)


if __name__ == "__main__":
    FILE.write_text(made(), encoding="utf-8")
