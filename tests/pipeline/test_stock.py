"""Stock or custom is said, and why; --stock keeps to what the class takes; the grid of widths."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import secateur
from conftest import tiny_model
from secateur.cli.main import run
from secateur.errors import SecateurError
from secateur.models import open_model
from secateur.pipeline import inspect
from secateur.pipeline.stock import form_of
from secateur.report import engine_notes, parallel_sizes
from secateur.search import Limits
from secateur.structure import Plan

QUICK: dict[str, Any] = {"align": 1, "samples": 4, "length": 16, "evaluate": "none"}


def is_stock(folder: Path) -> bool:
    return "auto_map" not in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("variant", "settings", "why"),
    [
        ("llama-gqa", {}, "layers differ in "),
        # 4 heads do not divide a hidden size of 50
        (
            "llama-gqa",
            {"method": "magnitude", "granularity": "kv_group", "hidden_size": 54, "ratio": 0.15},
            "not a multiple of the number of attention heads",
        ),
        ("mistral-gqa", {"search": "uniform"}, "no place for the biases .*o_proj.bias"),
        (
            "llama-gqa",
            {"method": "magnitude", "granularity": "mlp_block", "search": "AL-AM"},
            "whole attention or MLP blocks are gone",
        ),
        (
            "gemma",
            {"method": "magnitude", "granularity": "hidden", "search": "AL-AM"},
            "factor from hidden_size",
        ),
        ("qwen3-gqa", {"method": "magnitude"}, None),
    ],
)
def test_every_result_says_which_class_loads_it_and_why(
    variant: str, settings: dict[str, Any], why: str | None, tiny_folder: Any, text_file: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "small"
    changes = {k: settings[k] for k in ("hidden_size",) if k in settings}
    given = {**QUICK, "ratio": 0.3, **{k: v for k, v in settings.items() if k not in changes}}
    folder = tiny_folder(variant, **changes)
    result = secateur.prune(folder, out=out, calibration=str(text_file), **given)
    dry = secateur.prune(folder, dry_run=True, calibration=str(text_file), **given)
    form = result.to_json()["results"]["form"]
    assert dry.numbers["form"] == form
    assert form["stock"] == is_stock(out) == (why is None)
    assert form["class"] == json.loads((out / "config.json").read_text())["architectures"][0]
    facts = inspect(out)["facts"]
    card = (out / "README.md").read_text()
    if why is None:
        assert form["why_not_stock"] == ""
        assert facts["form"] == "stock"
        assert "no stock checkpoint" not in card
    else:
        import re

        assert re.search(why, form["why_not_stock"])
        assert facts["form"] == "custom"
        assert form["why_not_stock"] in card
    with_heads = facts.get("tensor-parallel sizes")
    assert with_heads is None or with_heads[0] == 1


@pytest.mark.parametrize("command", ["prune", "dry", "inspect"])
def test_the_command_line_says_it(
    command: str, model: Path, calibrated: list[str], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "small"
    arguments = ["prune", str(model), *calibrated, "--ratio", "0.3", "--out", str(out)]
    if command == "dry":
        arguments.append("--dry-run")
    assert run(arguments) == 0
    if command == "inspect":
        capsys.readouterr()
        assert run(["inspect", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    if command == "inspect":
        assert "why not stock" in said
    else:
        assert "A custom checkpoint, SecateurLlamaForCausalLM: layers differ in" in said


STOCKED = ("llama-gqa", "llama-mha", "llama-mqa", "qwen3-biased", "mixtral", "olmo2")
RATIOS = [(name, ratio) for name in STOCKED for ratio in (0.15, 0.4)]


@pytest.mark.parametrize(("variant", "ratio"), [*RATIOS, ("gpt2", 0.15)])
def test_with_stock_the_folder_is_stock_and_the_cost_is_said(
    variant: str, ratio: float, tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    result = secateur.prune(
        tiny_folder(variant), out=out, stock=True, method="flap", repair="none", ratio=ratio,
        calibration=str(text_file), **QUICK,
    )  # fmt: skip
    assert is_stock(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__module__.startswith("transformers.models")
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
    said = "\n".join(result.notes)
    assert "the search is uniform, not AL-AM" in said
    removed = result.numbers["removed_share"]
    assert f"{removed:.1%} of the decoder's linears go" in said
    assert abs(removed - ratio) < 0.12  # a head, a unit of few experts


def test_heads_are_those_that_transformers_takes(tiny_folder: Any, text_file: Path) -> None:
    """Of 8 KV groups (16 heads on a width of 64) 8, 4, 2, 1 divide: 6 or 5 do not."""
    changes = {"hidden_size": 64, "num_attention_heads": 16, "num_key_value_heads": 8}
    folder = tiny_folder("llama-gqa", **changes)
    kept = {}
    for ratio in (0.25, 0.45):
        result = secateur.prune(
            folder, stock=True, method="magnitude", ratio=ratio, dry_run=True, **QUICK
        )
        kept[ratio] = {a.granularity: len(result.plan.kept(a)) for a in result.structure.axes}
        assert result.numbers["form"]["stock"]
    assert (kept[0.25]["kv_group"], kept[0.45]["kv_group"]) == (8, 4)
    assert kept[0.25]["channel"] < 56
    free = secateur.prune(folder, method="magnitude", ratio=0.25, dry_run=True, **QUICK)
    assert not free.numbers["form"]["stock"]
    assert "multiple of the number of attention heads" in free.numbers["form"]["why_not_stock"]


def test_a_class_that_takes_no_fewer_heads_gives_what_its_mlps_can(tiny_folder: Any) -> None:
    """GPT-2 derives the width of a head from their number."""
    with pytest.raises(SecateurError, match=r"No number of heads that GPT2LMHeadModel takes"):
        secateur.prune(tiny_folder("gpt2"), stock=True, method="magnitude", ratio=0.4, **QUICK)


@pytest.mark.parametrize(
    ("variant", "settings", "says"),
    [
        (
            "mistral-gqa",
            {"method": "flap", "repair": "bias"},
            r"no place for the biases[^\n]*\n.*refit-no-bias",
        ),
        (
            "mistral-gqa",
            {"granularity": "layer", "repair": "refit"},
            r"no place for the biases[^\n]*\nType --repair none, or leave out",
        ),
        ("llama-gqa", {"search": "AL-AM"}, "--search uniform"),
        ("llama-gqa", {"layers": "1-2"}, "--layers names some"),
        ("llama-gqa", {"granularity": "mlp_block", "repair": "none"}, "--granularity layer"),
        ("llama-gqa", {"granularity": "layer,channel", "repair": "none"}, "Name one granularity"),
    ],
)
def test_what_does_not_go_with_stock_is_refused_before_the_work(
    variant: str, settings: dict[str, Any], says: str, tiny_folder: Any
) -> None:
    with pytest.raises(SecateurError, match=says):
        secateur.prune(
            tiny_folder(variant), stock=True, calibration="there is none", dry_run=True, **settings
        )


@pytest.mark.parametrize("variant", ["mistral-gqa", "llama-gqa"])
def test_mask_tuning_is_a_repair_for_stock_classes(
    variant: str, tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    settings = {**QUICK, "ratio": 0.3, "method": "flap", "repair": "mask-tuning"}
    secateur.prune(
        tiny_folder(variant), out=out, stock=True, calibration=str(text_file), **settings
    )
    assert is_stock(out)


def test_layers_with_stock_take_any_search(tiny_folder: Any, tmp_path: Path) -> None:
    out = tmp_path / "small"
    secateur.prune(
        tiny_folder("gemma2"), out=out, stock=True, granularity="layer", method="magnitude",
        search="AL-AM", ratio=0.3, evaluate="none",
    )  # fmt: skip
    assert is_stock(out)


def test_a_refit_after_layers_goes_with_stock_where_the_class_has_biases(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    result = secateur.prune(
        tiny_folder("llama-gqa"), out=out, stock=True, granularity="layer", repair="refit",
        damping=0.01, ratio=0.3, calibration=str(text_file), **QUICK,
    )  # fmt: skip
    assert is_stock(out)
    assert result.numbers["form"]["stock"]
    assert any(name.endswith("down_proj.bias") for name in secateur.load(out).state_dict())


def test_a_plan_made_with_stock_gives_the_same_again(tiny_folder: Any, tmp_path: Path) -> None:
    folder, out, again = tiny_folder(), tmp_path / "small", tmp_path / "again"
    secateur.prune(folder, out=out, stock=True, method="magnitude", ratio=0.3, **QUICK)
    from secateur.pipeline import read_plan

    plan = read_plan(out)
    assert secateur.apply(plan, folder, out=again).numbers["form"]["stock"]
    edited = Plan({**plan.keep, "layers.0.mlp": (0, 1)}, plan.architecture, plan.weights,
                  settings=plan.settings)  # fmt: skip
    with pytest.raises(SecateurError, match="layers differ in intermediate_size"):
        secateur.apply(edited, folder, out=tmp_path / "third")


# --- the grid of widths


def wide(channels: int, **changes: Any) -> Any:
    return open_model(tiny_model("llama-gqa", intermediate_size=channels, **changes)).structure


@pytest.mark.parametrize(
    ("channels", "align", "grid"),
    [(56, None, 8), (1000, None, 8), (1024, None, 32), (1536, None, 32), (1536, 8, 8),
     (56, 32, 32), (1536, 256, 256), (1536, 1, 1)],
)  # fmt: skip
def test_the_grid_of_widths_is_what_quantised_rows_want_where_the_mlp_can_bear_it(
    channels: int, align: int | None, grid: int
) -> None:
    limits = Limits(align=align)
    axis = next(a for a in wide(channels, num_hidden_layers=1).axes if a.granularity == "channel")
    assert limits.grid(axis) == grid
    assert limits.floor(axis) == min(grid, channels)


def test_by_default_widths_are_rows_that_quantise(tiny_folder: Any) -> None:
    folder = tiny_folder("llama-gqa", intermediate_size=1056)
    settings = {"method": "magnitude", "ratio": 0.3, "dry_run": True}
    result = secateur.prune(folder, **settings)
    widths = [len(result.plan.kept(a)) for a in result.structure.axes if a.kind == "mlp"]
    assert all(width % 32 == 0 and width < 1056 for width in widths)
    assert not [note for note in result.notes if "llama.cpp" in note]
    off = secateur.prune(folder, **{**settings, "align": 8, "ratio": 0.31})
    assert [note for note in off.notes if "no multiples of 32" in note and "--align 32" in note]


def test_rows_that_cannot_be_quantised_any_more_are_named() -> None:
    opened = open_model(tiny_model("llama-gqa", intermediate_size=512))
    structure = opened.structure

    def notes(*widths: int) -> list[str]:
        keep = {f"layers.{layer}.mlp": tuple(range(w)) for layer, w in enumerate(widths)}
        plan = Plan(keep, structure.architecture, structure.weights)
        form = form_of(opened, structure, plan)
        return engine_notes(structure, opened.weights.specs, form.weights.specs)

    assert notes(512, 256, 512) == []
    (said,) = notes(512, 288, 320)  # blocks of 32, but no longer of 256
    assert all(word in said for word in ("layers 1-2 ", "256", "k-quants"))
    (said,) = notes(500, 512, 512)
    assert all(word in said for word in ("layer 0 ", "no multiples of 32", "--align 32"))
    heads = open_model(tiny_model("llama-mha", head_dim=16))
    plan = Plan({"layers.0.attention": (0, 1, 2, 3, 4)}, "", "")
    form = form_of(heads, heads.structure, plan)
    (said,) = engine_notes(heads.structure, heads.weights.specs, form.weights.specs)
    assert "no multiples of 32" in said
    assert "--align" not in said  # which changes nothing of heads


def test_devices_that_the_groups_can_be_shared_out_to(
    pruned: Callable[..., Path], tiny_folder: Any
) -> None:
    assert parallel_sizes([8, 8, 8]) == [1, 2, 4, 8]
    assert parallel_sizes([8, 6]) == [1, 2]
    assert parallel_sizes([7]) == [1, 7]
    assert inspect(tiny_folder())["facts"]["tensor-parallel sizes"] == [1, 3]
    assert inspect(tiny_folder())["facts"]["MLP widths, multiples of"] == 56


def test_looking_says_whether_a_folder_is_stock(
    tiny_folder: Any, pruned: Any, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, stock in ((tiny_folder(), True), (pruned(), False)):
        for command in (
            ["discover"],
            ["evaluate", "--evaluate", str(text_file), "--evaluate-lengths", "16"],
        ):
            said = [command[0], str(folder), *command[1:]]
            assert run([*said, "--json"]) == 0
            form = json.loads(capsys.readouterr().out)["form"]
            assert form["stock"] == stock
            assert stock or "and the class has one for all" in form["why_not_stock"]
            assert run(said) == 0
            assert f"A {'stock' if stock else 'custom'} checkpoint" in capsys.readouterr().out
