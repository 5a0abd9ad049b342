"""The search by gates in the pipeline: what gradients are asked on, what is cut by them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secateur
from conftest import shared, tiny_model
from secateur.cli.main import run
from secateur.errors import SecateurError
from secateur.models import open_model
from secateur.pipeline import gating
from secateur.search import SEARCHES, Gradient, Removal, register_search, remove_lowest, search
from secateur.search import gates as searched


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    before = dict(SEARCHES)
    yield
    SEARCHES.clear()
    SEARCHES.update(before)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps will do."""
    monkeypatch.setattr(searched, "STEPS", 4)
    monkeypatch.setattr(searched, "TOKENS", 48)


def divergence(dense: Any, other: Any, tokens: Tensor) -> float:
    with torch.no_grad():
        ours, theirs = (model(tokens).logits.log_softmax(-1) for model in (dense, other))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


GRANULARITIES = [None, "kv_group,query_head", "layer", "attention_block,mlp_block", "channel,layer"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_closed_gates_are_the_model_that_is_cut(granularity: str | None, tokens: Tensor) -> None:
    """Two routes: gates of 0 in a pass, and the cut model on the same windows."""
    told: list[float] = []

    @register_search("my-search", paper="")
    def my_search(
        removals: Mapping[str, Removal], budget: float, gradient: Gradient
    ) -> dict[str, int]:
        choice = remove_lowest(removals, budget, nearest=True)
        gates = {name: torch.ones(len(one.order)) for name, one in removals.items()}
        for name, steps in choice.items():
            gates[name][list(removals[name].units(steps))] = 0.0
        told.append(gradient(gates, 10**6, 0)[0])
        return choice

    model = tiny_model()
    result = secateur.prune(
        model, search="my-search", method="magnitude", ratio=0.4, align=1, calibration=tokens,
        granularity=granularity, repair="none", evaluate="none",
    )  # fmt: skip
    expected = divergence(model, result.load(), tokens[:-1])  # what ways are judged on is not seen
    assert any(value == pytest.approx(expected, rel=1e-3) for value in told)
    assert expected > 1e-3


def test_turns_go_round_the_windows(tokens: Tensor) -> None:
    model, told = tiny_model(), list[float]()

    @register_search("my-search", paper="")
    def my_search(
        removals: Mapping[str, Removal], budget: float, gradient: Gradient
    ) -> dict[str, int]:
        gates = {name: torch.ones(len(one.order)) for name, one in removals.items()}
        gates["layers.1.mlp"][:] = 0.0
        told.extend(gradient(gates, 48, turn)[0] for turn in range(6))
        return remove_lowest(removals, budget, nearest=True)

    secateur.prune(
        model, search="my-search", method="magnitude", ratio=0.4, align=1, calibration=tokens,
        repair="none", evaluate="none", dry_run=True,
    )  # fmt: skip
    without = tiny_model()
    without.get_submodule("model.layers.1.mlp.down_proj").weight.data.zero_()
    windows = [(0, 1), (2, 3), (4, 0), (1, 2), (3, 4), (0, 1)]  # of five
    expected = [divergence(model, without, tokens[list(own)]) for own in windows]
    assert told == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("repair", ["refit", "none"])
@pytest.mark.parametrize("variant", ["llama-gqa", "mixtral"])
def test_the_budget_is_met_and_the_same_seed_gives_the_same_bytes(
    variant: str, repair: str, tiny_folder: Any, text_file: Path, tmp_path: Path, short: None
) -> None:
    folder = str(tiny_folder(variant))
    asked = ["--search", "gates", "--method", "obs-loss", "--repair", repair, "--ratio", "0.3"]
    if variant == "mixtral":
        asked += ["--importance", "wifv"] if repair == "refit" else ["--method", "flap"]
    text = ["--calibration", str(text_file), "--samples", "6", "--length", "16", "--align", "1"]
    for name in ("one", "two"):
        out = str(tmp_path / name)
        command = ["prune", folder, *asked, *text, "--evaluate", "none", "--seed", "3"]
        assert run([*command, "--out", out]) == 0
    for file in ("model.safetensors", "plan.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    found = secateur.apply(tmp_path / "one" / "plan.json", folder, evaluate="none")
    assert found.numbers["removed_share"] == pytest.approx(0.3, abs=0.05)


def test_what_was_asked_before_is_known(
    tiny_folder: Any, text_file: Path, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: dict[str, Any] = {"samples": 6, "length": 16, "align": 1, "evaluate": "none"}
    asked = {"search": "gates", "method": "obs-loss", "ratio": 0.3, "store": tmp_path / "store"}

    def plan(**more: Any) -> Any:
        folder, text = folders[0], str(text_file)
        return secateur.prune(
            folder, calibration=text, dry_run=True, **{**own, **asked, **more}
        ).plan.keep

    folders = [tiny_folder()]
    first = plan()
    monkeypatch.setattr(gating, "gated_divergence", lambda *args: pytest.fail("it was known"))
    assert plan() == first
    with pytest.raises(BaseException, match="it was known"):
        plan(repair="none")  # other gates


def test_what_gates_cannot_be_trained_on_is_told(tokens: Tensor) -> None:
    options: dict[str, Any] = {"search": "gates", "method": "magnitude", "evaluate": "none"}
    with pytest.raises(SecateurError, match=r"hidden are in all layers\.\nType --search AL-AM"):
        secateur.prune(tiny_model(), calibration=tokens, granularity="hidden", **options)
    axes = open_model(tiny_model()).structure.axes
    scores = {axis.name: torch.rand(axis.units, 1) for axis in axes}
    with pytest.raises(SecateurError, match=r"no text to take it on\.\nType --calibration"):
        search("gates", axes, scores, 1000.0)


@pytest.mark.slow
@pytest.mark.parametrize("repair", ["none", "refit"])
def test_gates_are_nearer_than_a_random_choice_on_a_real_model(
    repair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searched, "STEPS", 12)
    monkeypatch.setattr(searched, "TOKENS", 512)
    folder = shared("models/stories260K")
    text = shared("data/tinystories-sample.txt").read_text()[:60_000]
    common: dict[str, Any] = {
        "samples": 16, "length": 64, "evaluate": "none", "repair": repair, "ratio": 0.3,
    }  # fmt: skip
    opened = open_model(folder)
    ids = opened.tokenizer(text[-6000:], return_tensors="pt").input_ids[:, :1024].view(-1, 64)
    dense = opened.whole(torch.float32)
    far: dict[str, float] = {}
    for name, asked in (("gates", "obs-loss"), ("global", "random")):
        found = secateur.prune(
            folder, calibration=[text[:-6000]], method=asked, search=name, **common
        )
        far[name] = divergence(dense, found.load(), ids)
    assert far["gates"] < far["global"]
