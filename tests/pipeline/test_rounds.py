"""A search in rounds, cut off by the clock or by a kill: it is repeated, and goes on."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from conftest import tiny_model
from secateur.cli.main import run
from secateur.config import read_toml
from secateur.pipeline import candidates, choosing, contest

SHORT: dict[str, Any] = {
    "samples": 8, "length": 16, "align": 1, "ratio": 0.3, "evaluate": "none", "search": "kl",
    "repair": "bias",
}  # fmt: skip
ALL = 4 + 12


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many candidates each pass over the model was about: what is kept needs none."""
    counts: list[int] = []
    real = candidates._asked

    def noted(walk: Any, count: int, ones: Any, *others: Any) -> list[float]:
        counts.append(len(ones))
        return real(walk, count, ones, *others)

    monkeypatch.setattr(candidates, "_asked", noted)
    return counts


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    """A clock by which a pass takes ten seconds."""
    clock = partial(contest.rounds_of, clock=lambda: 10.0 * len(asked))
    monkeypatch.setattr(contest, "rounds_of", clock)


@pytest.mark.usefixtures("slow_clock")
def test_minutes_become_rounds_that_repeat_the_run(
    model: Path, text_file: Path, tmp_path: Path, asked: list[int]
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    result = secateur.prune(
        model, out=first, calibration=str(text_file), search_minutes=2.0, **SHORT
    )
    about = result.numbers["search"]
    assert about["of"] == ALL
    assert 1 < about["rounds"] < ALL
    assert len(asked) <= 12  # of ten seconds each
    assert any(f"time for {about['rounds']} of the {ALL} rounds" in note for note in result.notes)
    recorded = read_toml(first / "run.toml")
    assert recorded["search_rounds"] == about["rounds"]
    assert "search_minutes" not in recorded
    plan = json.loads((first / "plan.json").read_text())
    assert plan["settings"]["search_rounds"] == about["rounds"]
    run(["prune", "--config", str(first / "run.toml"), "--out", str(again)])
    for name in ("plan.json", "model.safetensors", "run.toml"):
        assert (first / name).read_bytes() == (again / name).read_bytes(), name


@pytest.mark.usefixtures("slow_clock")
def test_however_little_time_there_is_there_are_coarse_prices(
    model: Path, text_file: Path, asked: list[int]
) -> None:
    given = {"calibration": str(text_file), "dry_run": True, **SHORT}
    least = secateur.prune(model, search_minutes=1e-6, **given)
    assert least.numbers["search"]["rounds"] == 1
    passes = len(asked)
    whole = secateur.prune(model, **given)
    assert whole.numbers["search"]["rounds"] == ALL
    assert len(asked) - passes > 3 * passes
    assert least.plan != whole.plan


def test_a_killed_search_goes_on_without_asking_again(
    model: Path, text_file: Path, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"calibration": str(text_file), "dry_run": True, "search_rounds": 6, **SHORT}
    whole = secateur.prune(model, store=tmp_path / "other", **given)
    expected, store = list(asked), tmp_path / "store"
    real, calls = choosing.divergences, []

    def killed(*args: Any) -> Any:
        if len(calls) == len(expected) // 2:
            raise KeyboardInterrupt
        calls.append(args)
        return real(*args)

    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(choosing, "divergences", killed)
        with pytest.raises(KeyboardInterrupt):
            secateur.prune(model, store=store, **given)
    assert 0 < len(asked) < len(expected)
    again = secateur.prune(model, store=store, **given)
    assert again.plan == whole.plan
    assert again.numbers["search"] == whole.numbers["search"]
    assert asked == expected  # each pass once, in both runs together
    more = secateur.prune(model, store=store, **{**given, "search_rounds": 7})
    assert asked[: len(expected)] == expected
    assert len(asked) > len(expected)
    assert more.numbers["search"]["rounds"] == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--search", "AL-AM", "--search-minutes", "3"],
            ["search-minutes", "'AL-AM'", "search kl"],
        ),
        (["--method", "flap", "--search-rounds", "3"], ["search-rounds", "'AL-AM'", "search kl"]),
        (["--search", "kl", "--search-minutes", "0"], ["search_minutes", "greater than 0"]),
        (
            ["--search", "kl", "--search-minutes", "2", "--search-rounds", "3"],
            ["search-minutes", "search-rounds", "give one"],
        ),
    ],
)
def test_a_length_goes_with_a_search_in_rounds(
    options: list[str],
    words: list[str],
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Any,
) -> None:
    assert_refused("prune", model, *calibrated, *options, "--out", tmp_path / "small", says=words)


def test_minutes_take_the_place_of_recorded_rounds(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    secateur.prune(model, out=first, calibration=str(text_file), search_rounds=1, **SHORT)
    config = ["--config", str(first / "run.toml"), "--search-minutes", "0.0001"]
    run(["prune", *config, "--out", str(again)])
    assert read_toml(again / "run.toml")["search_rounds"] == 1


def test_whole_blocks_go_beside_units_in_one_search(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    """Of a model whose MLP of layer 1 gives nothing; the search is made once."""
    folder, out = tiny_folder(), tmp_path / "small"
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    result = secateur.prune(
        folder,
        out=out,
        calibration=str(text_file),
        granularity="kv_group,channel,attention_block,mlp_block",
        **{**SHORT, "repair": "refit", "search_rounds": 3},
    )
    gone = {a.name: a for a in result.structure.axes if result.plan.removed(a)}
    blocks = [axis for axis in gone.values() if axis.of]
    assert (1, "mlp") in [(axis.layer, axis.kind) for axis in blocks]
    assert any(not axis.of for axis in gone.values())
    assert not set(gone).intersection(name for axis in blocks for name in axis.of)
    assert result.numbers["search"]["rounds"] == 3
    assert result.numbers["removed_share"] == pytest.approx(0.3, abs=0.03)
    logits = secateur.load(out)(torch.arange(3, 20)[None]).logits
    assert bool(logits.isfinite().all())
