"""Table and picture in docs/structures.md are what the package finds and draws.

SECATEUR_WRITE_DOCS=1 writes them anew.
"""

import os
import re
from pathlib import Path

import pytest
import torch
import transformers
from test_discovery import axes_by, traced_like

import secateur
from conftest import VARIANTS, tiny_model
from secateur.errors import SecateurError
from secateur.export import prove
from secateur.models import FAMILIES, OpenModel, open_model
from secateur.models.discovery import layer_kinds
from secateur.pipeline import discover
from secateur.structure import GRANULARITIES

PAGE = Path(__file__).parent.parent.parent / "docs" / "structures.md"
PICTURE = PAGE.with_name("structures-llama.svg")
BEGIN, END = "<!-- families: begin (made by a test) -->", "<!-- families: end -->"
COLUMNS = (
    "family",
    "model_type",
    "units",
    "KV sharing tested",
    "traced = declared",
    "slicing = masking",
    "save, load, generate",
)
SHARINGS = ("multi-head", "grouped", "multi-query")


def variants_of(model_type: str) -> list[str]:
    return [
        name
        for name, (stock, _) in VARIANTS.items()
        if getattr(transformers, f"{stock}Config").model_type == model_type
    ]


def sharing(opened: OpenModel) -> str:
    groups, per_group = opened.family.heads(opened.config)
    return "multi-query" if groups == 1 else "grouped" if per_group > 1 else "multi-head"


def traces(opened: OpenModel) -> bool:
    layers = layer_kinds(opened.skeleton, opened.family.layers).values()
    return all(
        traced_like(opened, layer) == axes_by(opened.family, opened, layer) for layer in layers
    )


def holds(opened: OpenModel) -> bool:
    try:
        return prove(opened) < 1e-6
    except SecateurError:
        return False


def generates(variant: str, folder: Path) -> bool:
    """A pruned folder loads, and generates the same with a cache and without.

    Widths are multiples of 4: the fused kernel for experts takes no others in fp32.
    """
    options = {"method": "magnitude", "ratio": 0.3, "align": 4, "evaluate": "none"}
    secateur.prune(tiny_model(variant), out=folder, **options)
    model = secateur.load(folder)
    ids = torch.tensor([[5, 6, 7, 8]])
    grown, plain = (
        model.generate(
            ids, max_new_tokens=4, do_sample=False, eos_token_id=None, use_cache=cache,
            pad_token_id=0,
        )
        for cache in (True, False)
    )  # fmt: skip
    return torch.equal(grown, plain)


def row(model_type: str, folder: Path) -> list[str]:
    opened = {name: open_model(tiny_model(name)) for name in variants_of(model_type)}
    first = next(iter(opened))
    found = {axis.granularity for some in opened.values() for axis in some.structures.axes}
    checks = (traces(opened[first]), holds(opened[first]), generates(first, folder))
    sharings = {sharing(some) for some in opened.values()}
    return [
        VARIANTS[first][0],
        f"`{model_type}`",
        ", ".join(f"`{name}`" for name in GRANULARITIES if name in found),
        ", ".join(kind for kind in SHARINGS if kind in sharings),
        *("yes" if check else "no" for check in checks),
    ]


@pytest.fixture
def made(tmp_path: Path) -> str:
    lines = [
        COLUMNS, ["---"] * len(COLUMNS), *(row(name, tmp_path / name) for name in FAMILIES)
    ]  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_picture_is_what_the_command_draws() -> None:
    embedded = Path(secateur.__file__).parent / "embedded"
    made = discover(embedded).picture()
    if os.environ.get("SECATEUR_WRITE_DOCS") == "1":
        PICTURE.write_text(made, encoding="utf-8")
    else:
        assert PICTURE.read_text(encoding="utf-8") == made


@pytest.mark.slow
def test_the_table_of_families_is_what_holds(made: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    match = re.search(f"{re.escape(BEGIN)}\n(.*?){re.escape(END)}", page, flags=re.DOTALL)
    assert match, f"{PAGE.name} lacks the comments between which the table stands"
    if os.environ.get("SECATEUR_WRITE_DOCS") == "1":
        PAGE.write_text(page[: match.start(1)] + made + page[match.end(1) :], encoding="utf-8")
    else:
        assert match[1] == made, f"type SECATEUR_WRITE_DOCS=1 pytest {__file__}"
