"""Formats by name: an exporter that somebody registers writes what every command writes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import secateur
from conftest import snapshot
from secateur import SecateurError
from secateur.cli.main import run
from secateur.config import PruneConfig, RecoverConfig, read_toml
from secateur.export import EXPORTERS, Form, exporter
from secateur.pipeline import prune_and_recover

_BYTES = 321


@pytest.fixture
def written() -> Iterator[list[Form]]:
    """The forms that the exporter `names` wrote: a file with the names of the tensors."""
    forms: list[Form] = []

    @exporter("names")
    def names(folder: Path, form: Form) -> int:
        (folder / "names.txt").write_text("\n".join(form.stored.specs))
        forms.append(form)
        return _BYTES

    yield forms
    del EXPORTERS["names"]


@pytest.fixture
def failing() -> Iterator[None]:
    @exporter("failing")
    def failed(folder: Path, form: Form) -> int:
        (folder / "half.txt").write_text("half")
        raise SecateurError("No such tensor in this format.\nType: --format safetensors")

    yield
    del EXPORTERS["failing"]


def assert_written(out: Path, form: Form, numbers: Any, record: str) -> None:
    assert (out / "names.txt").read_text().split() == list(form.stored.specs)
    assert not list(out.glob("*.safetensors"))
    assert not (out / "config.json").exists()
    assert (out / "README.md").exists()
    assert numbers["bytes"]["after"] == _BYTES
    assert read_toml(out / record)["format"] == "names"


def test_prune_and_apply_write_the_format_that_they_are_told(
    model: Path, tmp_path: Path, written: list[Form]
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    done = secateur.prune(model, method="magnitude", evaluate="none", format="names", out=out)
    assert_written(out, written[0], done.numbers, "run.toml")
    words = ["--evaluate", "none", "--format", "names", "--out", str(again)]
    assert run(["apply", str(out / "plan.json"), str(model), *words]) == 0
    assert (again / "names.txt").read_bytes() == (out / "names.txt").read_bytes()
    assert len(written) == 2
    assert "format" not in json.loads((out / "plan.json").read_text())["settings"]


def test_recover_writes_the_format_that_it_is_told(
    pruned: Callable[..., Path], text_file: Path, tmp_path: Path, written: list[Form]
) -> None:
    out, how = tmp_path / "better", {"steps": 1, "batch": 2, "length": 16, "samples": 8}
    done = secateur.recover(
        pruned(), data=str(text_file), evaluate="none", format="names", out=out, **how
    )
    assert_written(out, written[0], done.numbers, "recovery.toml")


def test_what_is_trained_after_pruning_is_read_again_and_the_outcome_has_the_format(
    model: Path, text_file: Path, tmp_path: Path, written: list[Form]
) -> None:
    out, how = tmp_path / "both", {"calibration": str(text_file), "length": 16, "samples": 8}
    _, done = prune_and_recover(
        model, out=out, recipe="lora", method="magnitude", format="names", evaluate="none", **how
    )
    assert_written(out, written[0], done.numbers, "recovery.toml")
    assert len(written) == 1


@pytest.mark.parametrize("force", [False, True])
def test_an_exporter_that_fails_leaves_nothing_behind(
    force: bool, model: Path, tmp_path: Path, failing: None, assert_refused: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    if force:
        secateur.prune(model, method="magnitude", evaluate="none", out=out)
    before = snapshot(tmp_path)
    options = ["--method", "magnitude", "--evaluate", "none", "--format", "failing", "--out", out]
    assert_refused("prune", model, *options, *["--force"] * force, says=["--format safetensors"])
    assert snapshot(tmp_path) == before


def test_a_format_that_nobody_registered_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=r"Unknown format 'gguf'\.\nKnown: safetensors\."):
        secateur.prune(model, format="gguf", out=tmp_path / "out")
    with pytest.raises(SecateurError, match="Did you mean 'safetensors'"):
        secateur.recover(model, format="safetensor", data="text.txt", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_usual_format_is_one_of_those_registered() -> None:
    for settings in (PruneConfig, RecoverConfig):
        assert settings.model_fields["format"].default in EXPORTERS
