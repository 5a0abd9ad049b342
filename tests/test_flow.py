"""The picture and the table of the flow are what the code of `prune` says."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))

from flow import page, picture, stages  # noqa: E402

from secateur.pipeline import pruning  # noqa: E402

DOCS = ROOT / "docs"


def test_the_picture_of_the_flow_is_true() -> None:
    found = stages(pruning, "prune")
    assert (DOCS / "flow.svg").read_text("utf-8") == picture(found), "run scripts/flow.py"
    text = (DOCS / "architecture.md").read_text("utf-8")
    assert text == page(text, found), "run scripts/flow.py"


def test_each_stage_is_entered_once_and_values_come_before_they_are_taken() -> None:
    found = stages(pruning, "prune")
    names = [stage.name for stage in found]
    assert len(set(names)) == len(names)
    known = {"model", "out", "force", "dry_run", "tokenizer", "store", "fresh", "settings", "needs"}
    known |= {"push_to_hub", "private"}
    for stage in found:
        assert set(stage.takes) <= known, stage.name
        known |= set(stage.gives)
