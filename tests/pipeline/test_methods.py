"""The recipes through the whole pipeline, a score of one's own, and comparing methods."""

import csv
import itertools
import json
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import secateur
from conftest import EVERY_FAMILY_SLOWLY, tiny_model, tiny_tokenizer
from secateur.cli.main import run
from secateur.config import make_config
from secateur.errors import SecateurError
from secateur.fusion import FUSIONS
from secateur.importance import IMPORTANCE
from secateur.methods import METHODS
from secateur.models import open_model
from secateur.pipeline import compare, contest, held_out, passes, texts
from secateur.pipeline.choice import layers_of
from secateur.pipeline.estimate import (
    asking_windows,
    few_tokens,
    searching_windows,
    split_windows,
)
from secateur.pipeline.probing import masked_losses
from secateur.search import SEARCHES
from secateur.stats import Walk

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture
def pruned(tiny_folder: Any, text_file: Path) -> Any:
    def make(variant: str = "llama-gqa", **settings: Any) -> Any:
        given = {"samples": 8, "length": 16, "align": 1, "ratio": 0.3, "evaluate": "none"}
        folder = tiny_folder(variant)
        return secateur.prune(folder, calibration=str(text_file), **{**given, **settings})

    return make


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_gradient_methods_prune_every_family(variant: str, pruned: Any) -> None:
    before = sum(p.numel() for p in tiny_model(variant).parameters())
    for method in ("llm-pruner", "hywia", "saap", "obs-loss"):
        result = pruned(variant, method=method)
        assert sum(p.numel() for p in result.load().parameters()) < before
        assert ("blend" in result.numbers) == (method in ("hywia", "saap"))


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_takes_gradient_scores(search: str, pruned: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scale = "raw" if search in ("global", "tempered") else None
        result = pruned(method="saap", search=search, scale=scale)
    # UL-UM rounds both shares down
    within = 0.2 if search == "UL-UM" else 0.08
    assert result.numbers["removed_share"] == pytest.approx(0.3, abs=within)


@pytest.mark.parametrize("repair", ["none", "bias", "refit", "mask-tuning"])
@pytest.mark.parametrize("method", METHODS)
def test_every_repair_goes_with_every_method(method: str, repair: str, pruned: Any) -> None:
    result = pruned(method=method, repair=repair)
    logits = result.load()(torch.tensor([[5, 6, 7]])).logits
    assert torch.isfinite(logits).all()
    reports = result.numbers.get("repair", [])
    assert bool(reports) == (repair in ("refit", "mask-tuning"))
    if repair == "refit":
        assert all(report["after"] <= report["before"] * 1.5 for report in reports)


@pytest.mark.parametrize("method", ["llm-pruner", "hywia", "saap"])
def test_the_middle_layers_alone_lose_units(method: str) -> None:
    """LLM-Pruner's layers 4 to 29 of 32: here 2 to 14 of 16."""
    structure = open_model(tiny_model("llama-gqa", num_hidden_layers=16)).structure
    config = make_config(model="m", method=method)
    assert layers_of(structure, config) == tuple(range(2, 15))
    assert layers_of(structure, make_config(model="m", method="flap")) is None
    named = make_config(model="m", method=method, layers="0-3")
    assert layers_of(structure, named) == (0, 1, 2, 3)


def _jetmoe() -> Any:
    """Experts that are stacked in a tensor called `weight`; nobody declared the family."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 2}
        own = {"kv_channels": 8, "intermediate_size": 24, "num_local_experts": 4}
        config = transformers.JetMoeConfig(
            vocab_size=128, max_position_embeddings=64, **sizes, **own
        )
        return transformers.JetMoeForCausalLM(config).eval()


MADE = {
    name: partial(tiny_model, name) for name in ("qwen2-gqa", "gpt2", "mixtral", "qwen3_moe")
} | {"jetmoe": _jetmoe}


@pytest.mark.parametrize("made", MADE)
def test_masked_losses_are_those_of_masked_models(
    made: str, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes of one layer, of two, of none; batches of one window, of two probes, of all."""
    opened = open_model(MADE[made]())
    axes = opened.structure.axes
    generator = torch.Generator().manual_seed(0)
    masks = {axis: torch.rand(5, axis.units, generator=generator) < 0.3 for axis in axes}
    for axis, mask in masks.items():
        mask[0] &= axis.layer == 0
        mask[1] &= axis.layer == 1
        mask[2] &= axis.kind == "mlp"
        mask[3] = False
    for batch in (1, len(tokens) + 2, 6 * len(tokens)):
        monkeypatch.setattr("secateur.pipeline.probing._TOKENS", batch * tokens.shape[1])
        walk = Walk(opened.streamed(device="cpu"), tokens, batch=min(batch, len(tokens)))
        got = masked_losses(walk, masks)
        assert got.tolist() == pytest.approx(_masked_by_hand(MADE[made], tokens, masks), rel=1e-5)


@pytest.mark.parametrize(
    ("windows", "length", "expected"),
    [
        (4, 256, (4, 64)),
        (16, 256, (4, 64)),
        (1, 2048, (1, 256)),
        (2, 40, (2, 40)),
        (0, 64, (0, 64)),
    ],
)
def test_a_fusion_asks_on_a_few_tokens_of_long_windows(
    windows: int, length: int, expected: tuple[int, int]
) -> None:
    ids = torch.arange(windows * length).view(windows, length)
    few = few_tokens(ids)
    assert few.shape == expected
    assert torch.equal(few, ids[: expected[0], : expected[1]])


def _masked_by_hand(made: Callable[[], Any], tokens: torch.Tensor, masks: Any) -> list[float]:
    losses = []
    for probe in range(5):
        other = made()
        for axis, mask in masks.items():
            module = other.get_submodule(axis.consumer.module)
            rows = getattr(module, axis.consumer.parameter).data
            view = rows.movedim(axis.consumer.dims, tuple(range(len(axis.consumer.dims))))
            flat = [range(size) for size in view.shape[: len(axis.consumer.dims)]]
            places = list(itertools.product(*flat))
            units = mask[probe].nonzero().flatten()
            for index in axis.consumer.blocks.indices(units).flatten().tolist():
                view[places[index]] = 0
        with torch.no_grad():
            logits = other(tokens).logits[:, :-1].flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        losses.append(expected.item())
    return losses


@pytest.mark.parametrize(
    "method",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("flap", "saap")), "hywia"],
)
def test_experts_that_are_stacked_as_a_weight_are_cut_as_others_are(
    method: str, tokens: torch.Tensor
) -> None:
    """Scores, probes and refit (which leaves experts as they are) of a family of its own."""
    dense = _jetmoe()
    settings: dict[str, Any] = {"calibration": tokens, "evaluate": "none", "repair": "refit"}
    result = secateur.prune(dense, method=method, ratio=0.3, align=1, **settings)
    small = result.load()
    with torch.no_grad():
        assert small(tokens).logits.isfinite().all()
    assert small.num_parameters() < dense.num_parameters()


@pytest.fixture
def own_score(tmp_path: Path) -> Path:
    """The example of the docs."""
    text = (DOCS / "own-score.md").read_text()
    path = tmp_path / "my_score.py"
    path.write_text(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0])
    return path


def test_a_score_of_ones_own(
    own_score: Path, model: Path, calibrated: list[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "small")
    arguments = ["prune", str(model), "--use", str(own_score), "--method", "my-score", "--out", out]
    assert run([*arguments, *calibrated, "--ratio", "0.3"]) == 0
    assert 'method = "my-score"' in (tmp_path / "small" / "run.toml").read_text()
    IMPORTANCE.pop("my-score")
    METHODS.pop("my-score")
    again = ["prune", "--config", f"{out}/run.toml", "--use", str(own_score)]
    again += ["--out", str(tmp_path / "again")]
    assert run(again) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [("x = 1\n", "registers no score"), ("1 / 0\n", "ZeroDivisionError"), (None, "Python file")],
)
def test_a_file_without_a_score_is_refused(
    text: str | None, says: str, model: Path, tmp_path: Path, assert_refused: Any
) -> None:
    path = tmp_path / "my_score.py"
    if text is not None:
        path.write_text(text)
    assert_refused("prune", model, "--use", path, "--out", tmp_path / "small", says=[says])


def test_compare_gives_what_pruning_one_by_one_gives(
    tiny_folder: Any, text_file: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tiny_folder()
    methods = ["flap", "wanda-sp", "saap", "hywia", "random"]
    common = ["--calibration", str(text_file), "--samples", "8", "--length", "16", "--align", "1"]
    arguments = ["compare", str(folder), "--methods", ",".join(methods), "--ratios", "0.2,0.4"]
    assert run([*arguments, *common, "--out", str(tmp_path / "c"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["method"], row["ratio"]) for row in rows] == [
        (method, ratio) for method in methods for ratio in (0.2, 0.4)
    ]
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["rows"] == rows
    table = list(csv.DictReader((tmp_path / "c" / "comparison.csv").read_text().splitlines()))
    assert [float(line["removed"]) for line in table] == [row["removed"] for row in rows]
    report = json.loads((tmp_path / "c" / "report.json").read_text())
    assert [row["removed"] for row in report["rows"]] == [row["removed"] for row in rows]
    assert (tmp_path / "c" / "report.html").exists()
    for row in rows[::2]:
        alone = secateur.prune(
            folder, method=row["method"], ratio=row["ratio"], calibration=str(text_file), samples=8,
            length=16, align=1,
        )  # fmt: skip
        after = [entry["after"] for entry in alone.numbers["perplexity"]]
        assert after == pytest.approx([entry["after"] for entry in row["perplexity"]], rel=1e-4)


def test_a_fusion_says_what_it_lacks(pruned: Any) -> None:
    with pytest.raises(SecateurError, match="--samples"):
        pruned(method="saap", samples=1)
    with pytest.raises(SecateurError, match="--samples"):
        pruned(method="hywia", samples=1)
    with pytest.raises(SecateurError, match="--search AL-AM"):
        pruned(method="llm-pruner", search="two_stage")


def test_scores_below_zero_are_not_shared_out_per_parameter(pruned: Any) -> None:
    for settings in ({"search": "global"}, {"search": "AL-AM", "scale": "log"}):
        with pytest.raises(SecateurError, match="--scale standardised or raw"):
            pruned(method="saap", **settings)


@pytest.mark.parametrize("search", ["two_stage", "joint"])
def test_scores_by_sample_rank_whole_experts(search: str, pruned: Any) -> None:
    settings = {"granularity": "expert", "search": search, "repair": "none"}
    assert pruned("mixtral", method="saap", **settings).numbers["removed_share"] > 0


def test_an_edited_plan_may_cut_layers_that_were_not_asked_for(
    tiny_folder: Any, text_file: Path
) -> None:
    folder = tiny_folder()
    options = {"calibration": str(text_file), "samples": 4, "length": 16, "evaluate": "none"}
    plan = secateur.prune(folder, method="flap", layers="1-2", dry_run=True, **options).plan
    keep = {**plan.keep, "layers.0.mlp": tuple(range(40))}
    done = secateur.apply(replace(plan, keep=keep), folder, evaluate="none")
    assert done.load().model.layers[0].mlp.down_proj.in_features == 40


def test_compare_makes_each_pass_once(
    tiny_folder: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[str, int] = {}

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def count(*args: Any, **kwargs: Any) -> Any:
            stage = args[4] if name == "perplexities" else ""
            counts[f"{name} {stage}"] = counts.get(f"{name} {stage}", 0) + 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, count)

    counted(texts, "calibration_windows")
    counted(passes, "collect")
    counted(held_out, "perplexities")
    counted(contest, "score_units")
    rows = compare(
        tiny_folder(), methods=["flap", "wanda-sp", "magnitude"], ratios=[0.2, 0.4],
        repairs=["none", "bias"], calibration=str(text_file), samples=4, length=16,
        evaluate=str(text_file), evaluate_tokens=200,
    )  # fmt: skip
    assert len(rows) == 12
    assert counts == {
        "calibration_windows ": 1,
        "collect ": 1,
        "score_units ": 3,
        "perplexities perplexity before": 1,
        "perplexities perplexity after": 12,
    }


def test_the_windows_that_ask_the_loss_score_nothing() -> None:
    ids = torch.arange(40).view(20, 2)
    scored, asking = split_windows(ids, "evidence")
    assert sorted([*scored[:, 0].tolist(), *asking[:, 0].tolist()]) == ids[:, 0].tolist()
    assert len(asking) == 2
    assert split_windows(ids, "split_half")[0].equal(ids)
    judging = asking_windows(ids)
    assert judging is not None
    assert judging.equal(asking)
    searched = searching_windows(ids)
    assert len(searched) == 2
    assert not set(searched[:, 0].tolist()) & set(judging[:, 0].tolist())
    assert searching_windows(ids[:2]).equal(ids[1:2])


@pytest.mark.parametrize(
    "granularity", ["channel,layer", "kv_group,query_head", "channel,mlp_block"]
)
def test_parameters_of_units_that_overlap_count_once(
    granularity: str, text_file: Path, tmp_path: Path
) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    result = secateur.prune(
        model,
        tokenizer=tokenizer,
        calibration=str(text_file),
        method="magnitude",
        search="AL-AM",
        granularity=granularity,
        ratio=0.4,
        align=1,
        repair="none",
        evaluate="none",
        samples=4,
        length=16,
        out=tmp_path / "small",
    )
    kinds = {a.granularity for a in result.structure.axes if result.plan.removed(a)}
    assert kinds == set(granularity.split(","))  # both go, or nothing would overlap
    before, after = (result.numbers["parameters"][when] for when in ("before", "after"))
    record = json.loads((tmp_path / "small" / "plan.json").read_text())
    assert record["removed_parameters"] == before - after
    wanted = 0.4 * result.structure.prunable
    assert before - after < result.plan.removed_cost(result.structure)
    largest = max(axis.cost for axis in result.structure.axes)
    assert abs((before - after) - wanted) <= largest / 2  # the nearest: one step more is too much


def test_units_that_overlap_are_not_repaired(pruned: Any) -> None:
    for repair in ("bias", "refit"):
        with pytest.raises(SecateurError, match="overlap"):
            pruned(method="magnitude", search="AL-AM", granularity="kv_group,query_head",
                   repair=repair)  # fmt: skip


def test_what_comes_back_from_a_live_model_is_a_copy(text_file: Path) -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {"samples": 4, "length": 16, "evaluate": "none", "calibration": str(text_file)}
    small = secateur.prune(model, tokenizer=tiny_tokenizer(), **options).load()
    for parameter in small.parameters():
        parameter.data.zero_()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("name", [n for n, f in FUSIONS.items() if "probe" in f.asks])
def test_a_fusion_says_how_many_windows_it_needs_the_asking_ones_included(name: str) -> None:
    needed = max(FUSIONS[name].samples, 1)
    for count in range(1, 12):
        ids = torch.zeros(count, 8, dtype=torch.int64)
        if count > needed:
            scored, asking = split_windows(ids, name)
            assert len(scored) >= needed
            assert len(scored) + len(asking) == count
            assert len(asking)
        else:
            with pytest.raises(SecateurError, match=f"at least {needed + 1} calibration windows"):
                split_windows(ids, name)


@pytest.mark.parametrize("method", ["hywia", "saap"])
def test_the_fine_score_of_a_fusion_can_be_chosen(
    method: str, tiny_folder: Callable[..., Path], text_file: Path
) -> None:
    """`first` is the default; Fisher and mixed scores give other plans' blends."""
    folder = tiny_folder()
    options: dict[str, Any] = {"ratio": 0.3, "samples": 16, "length": 16}
    if method == "saap":  # fitted to one scope, its shares are equal by construction
        options["scope"] = "global"
    blends = {
        fine: secateur.prune(
            folder,
            method=method,
            repair="none",
            calibration=str(text_file),
            evaluate="none",
            **options,
            **({"fine": fine} if fine else {}),
        ).numbers["blend"]
        for fine in ("", "first", "second", "mixed")
    }
    assert blends[""] == blends["first"]
    assert blends["first"] != blends["second"] != blends["mixed"] != blends["first"]


@pytest.mark.parametrize(
    ("fusion", "settings"),
    [
        ("evidence", {"tau": 5.0}),
        ("evidence", {"probes": 3}),
        ("split_half", {"splits": 1}),
        ("regression", {"shrinkage": 0.0}),
        ("homoscedastic", {"scope": "global"}),
    ],
)
def test_settings_of_fusions_reach_them_and_are_recorded(
    fusion: str, settings: dict[str, Any], tiny_folder: Callable[..., Path], text_file: Path
) -> None:
    folder = tiny_folder()
    options = {"ratio": 0.3, "samples": 16, "length": 16, "evaluate": "none", "repair": "none"}
    usual, other = (
        secateur.prune(folder, fusion=fusion, calibration=str(text_file), **options, **given)
        for given in ({}, settings)
    )
    assert usual.numbers["blend"] != other.numbers["blend"]
    for name, value in settings.items():
        assert other.plan.settings[name] == value
    idle = secateur.prune(folder, method="magnitude", evaluate="none", ratio=0.3, **settings)
    assert any(f"--{name} changes nothing" in note for note in idle.notes for name in settings)


def test_notes_of_a_comparison_say_which_setting_they_are_of(
    tiny_folder: Any, text_file: Path
) -> None:
    noted: list[str] = []
    options = {"calibration": str(text_file), "samples": 4, "length": 16, "evaluate": "none"}
    rows = {"methods": ["magnitude"], "ratios": [0.0001, 0.3]}
    compare(tiny_folder(), each=lambda result: noted.extend(result.notes), **rows, **options)
    said = [note for note in noted if "nothing is removed" in note]
    assert [note.partition(":")[0] for note in said] == ["magnitude at 0.0001, none"]


@pytest.mark.parametrize("method", ["hywia", "saap", "flap"])
@pytest.mark.parametrize(
    "context",
    [torch.inference_mode, torch.no_grad, partial(torch.autocast, "cpu", dtype=torch.bfloat16)],
)
def test_what_a_caller_has_entered_changes_nothing(
    context: Callable[[], Any], method: str, tokens: torch.Tensor
) -> None:
    """Gradients are taken in inference mode, too, and the arithmetic is what `dtype` says."""
    dense = tiny_model()
    settings: dict[str, Any] = {"calibration": tokens, "evaluate": "none", "repair": "refit"}
    results = []
    for entered in (nullcontext, context):
        with entered():
            results.append(secateur.prune(dense, method=method, ratio=0.3, align=1, **settings))
            assert torch.is_autocast_enabled("cpu") is isinstance(entered, partial)
    plain, other = (result.load().state_dict() for result in results)
    assert results[0].plan.keep == results[1].plan.keep
    assert all(torch.equal(plain[name], other[name]) for name in plain)
