"""The method best: what it takes is what is nearest to the dense model of all that it tries."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import secateur
from conftest import tiny_model
from secateur.config import make_config
from secateur.errors import SecateurError
from secateur.pipeline import choosing, contest
from secateur.pipeline.contest import Chosen, ways_of
from secateur.pipeline.estimate import Estimate, asking_windows
from secateur.pipeline.passes import Seen
from secateur.pipeline.subject import Subject, open_subject
from secateur.stats import Statistics
from secateur.structure import Plan

pytestmark = pytest.mark.contest

SMALL: dict[str, Any] = {"ratio": 0.3, "samples": 12, "length": 32, "align": 4, "device": "cpu"}


def divergence(dense: Any, small: Any, tokens: Tensor) -> float:
    with torch.no_grad():
        p, q = (model(tokens).logits.double().log_softmax(-1) for model in (dense, small))
    return float((p.exp() * (p - q)).sum(-1).mean())


def parts_of(row: dict[str, Any]) -> dict[str, str]:
    return {name: row[name] for name in ("importance", "search", "repair")}


def test_what_is_told_of_the_ways_is_what_whole_models_say() -> None:
    model = tiny_model("llama-gqa")
    tokens = torch.randint(3, 60, (12, 32), generator=torch.Generator().manual_seed(2))
    result = secateur.prune(model, method="best", calibration=tokens, evaluate="none", **SMALL)
    asking = asking_windows(tokens)
    assert asking is not None
    assert len(asking) == 1
    last = [row for row in result.numbers["contest"] if row["windows"] == 12]
    assert len(last) == 2
    for row in last:
        alone = secateur.prune(
            model, method="best", calibration=tokens, evaluate="none", **parts_of(row), **SMALL
        )
        assert "contest" not in alone.numbers
        found = divergence(model, alone.load(), asking)
        assert row["divergence"] == pytest.approx(found, rel=1e-3)
    least = min(last, key=lambda row: row["divergence"])
    settings = result.config
    assert parts_of(least) == {
        "importance": settings.importance_name,
        "search": settings.search_name,
        "repair": settings.repair_name,
    }


def test_the_winner_is_what_its_parts_make(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    folder, text = tiny_folder(), str(text_file)
    best = secateur.prune(folder, out=tmp_path / "best", calibration=text, **SMALL)
    parts = parts_of(min(best.numbers["contest"][-2:], key=lambda row: row["divergence"]))
    secateur.prune(folder, out=tmp_path / "alone", calibration=text, **parts, **SMALL)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("best", "alone"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = secateur.prune(folder, calibration=text, **SMALL)
    assert again.numbers["contest"] == best.numbers["contest"]


def test_what_is_named_is_not_varied(tiny_folder: Any) -> None:
    config = make_config(model="m", search="uniform", repair="bias")
    ways = ways_of(open_subject(tiny_folder(), config), config)
    assert {(way.config.search_name, way.config.repair_name) for way in ways} == {
        ("uniform", "bias")
    }
    assert len({way.config.importance_name for way in ways}) == len(ways) > 1


@pytest.mark.parametrize("effort", ["fast", "good", pytest.param("max", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("llama-gqa", {"granularity": "layer"}),
        ("llama-gqa", {"granularity": "attention_block,mlp_block"}),
        ("llama-gqa", {"granularity": "channel,layer"}),
        ("llama-gqa", {"granularity": "hidden", "align": 1}),
        ("llama-gqa", {"stock": True}),
        ("gpt2", {"stock": True}),
        ("mixtral", {}),
        ("llama-gqa", {"fusion": "homoscedastic"}),
        ("llama-gqa", {"samples": 1}),
        ("llama-gqa", {"ratio": 0.0}),
    ],
    ids=str,
)
def test_it_takes_any_units(
    variant: str, settings: dict[str, Any], effort: str, tiny_folder: Any, text_file: Path
) -> None:
    asked = {**SMALL, "evaluate": "none", "effort": effort, **settings}
    result = secateur.prune(tiny_folder(variant), calibration=str(text_file), **asked)
    assert result.numbers["removed_share"] == pytest.approx(asked["ratio"], abs=0.2)
    if settings.get("stock"):
        assert result.numbers["form"]["stock"]


def test_where_no_way_goes_it_says_why_the_first_does_not(tiny_folder: Any) -> None:
    with pytest.raises(SecateurError, match="ratio"):
        secateur.prune(tiny_folder(), ratio=0.99, dry_run=True)


def test_effort_of_another_method_is_told(tiny_folder: Any) -> None:
    result = secateur.prune(tiny_folder(), method="magnitude", effort="fast", dry_run=True, align=1)
    assert any("--effort changes nothing" in note for note in result.notes)


def test_a_way_that_does_not_compute_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.pipeline import contest

    cut = contest.cut

    def failing(subject: Any, *rest: Any) -> Any:
        if subject.config.importance_name == "obs-loss":
            raise SecateurError("It overflows.\nType something.")
        return cut(subject, *rest)

    model = tiny_model("llama-gqa")
    tokens = torch.randint(3, 60, (8, 16), generator=torch.Generator().manual_seed(2))
    given: dict[str, Any] = {"calibration": tokens, "evaluate": "none", **SMALL}
    monkeypatch.setattr(contest, "cut", failing)
    result = secateur.prune(model, **given)
    assert {row["importance"] for row in result.numbers["contest"]} == {"wifv", "magnitude-l2"}
    assert any("obs-loss, tempered: It overflows." in told for told in result.notes)
    with pytest.raises(SecateurError, match="No way to prune"):
        secateur.prune(model, importance="obs-loss", **given)


def test_rounds_of_the_first_search_are_those_of_every_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that the one number in the record repeats whichever way won."""
    config = make_config(model="x", method="best", search="kl", search_minutes=3.0, **SMALL)
    ways = ways_of(open_subject(tiny_model("llama-gqa"), config), config)
    assert len(ways) > 1
    begun: list[tuple[float | None, int | None]] = []

    def planned(way: Subject, *_: Any) -> Chosen:
        begun.append((way.config.search_minutes, way.config.search_rounds))
        plan = Plan({}, "", "")
        made = way.under(search_minutes=None, search_rounds=len(begun) + 4)
        return Chosen(made, Estimate({}), plan, search={"rounds": len(begun) + 4})

    monkeypatch.setattr(contest, "_planned", planned)
    plans = contest._all_planned(ways, None, Seen(Statistics(), {}), {})
    assert begun == [(3.0, None), *[(None, 5)] * (len(ways) - 1)]
    assert {one.subject.config.search_rounds for one in plans} == {5}


def test_a_search_asks_on_other_windows_than_it_is_judged_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(model="x", method="obs-loss", search="kl", **SMALL)
    (way,) = ways_of(open_subject(tiny_model("llama-gqa"), config), config)
    asked: list[Tensor] = []

    def divergences(walk: Any, *_: Any) -> Tensor:
        asked.append(walk.tokens)
        return torch.zeros(1)

    monkeypatch.setattr(choosing, "divergences", divergences)
    tokens = torch.arange(24)[:, None].expand(24, 8) + 3
    judging = asking_windows(tokens)
    assert judging is not None
    assert len(judging) == 3
    found = choosing._divergence(way, tokens, Statistics())
    assert found is not None
    for count, windows in ((None, tokens[18:21]), (9, tokens[18:20])):
        found([{}], count)
        assert torch.equal(asked.pop(), windows)
