"""The whole way: same seed, same bytes; a plan applied is the model pruned."""

import filecmp
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from conftest import SHARED, shared, tiny_model, tiny_tokenizer
from secateur.config import read_toml
from secateur.methods import METHODS
from secateur.pipeline import read_plan

SMALL: dict[str, Any] = {"ratio": 0.3, "samples": 12, "length": 32, "align": 4, "device": "cpu"}


def assert_same_folder(one: Path, other: Path, *, but: tuple[str, ...] = ()) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        if name not in but:
            assert filecmp.cmp(one / name, other / name, shallow=False), name


@pytest.mark.contest
@pytest.mark.parametrize("method", list(METHODS))
def test_same_seed_gives_byte_identical_folders(
    method: str, tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder()
    for out in ("one", "two"):
        secateur.prune(
            folder, out=tmp_path / out, method=method, calibration=str(text_file), **SMALL
        )
    assert_same_folder(tmp_path / "one", tmp_path / "two")


def test_the_folder_holds_what_a_model_folder_should(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    result = secateur.prune(
        tiny_folder(), out=tmp_path / "small", calibration=str(text_file), **SMALL
    )
    files = {path.name for path in (tmp_path / "small").iterdir()}
    assert files == {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
        "modeling_secateur.py", "plan.json", "run.toml", "tokenizer.json", "tokenizer_config.json",
        "report.json", "report.html",
    }  # fmt: skip
    card = (tmp_path / "small" / "README.md").read_text()
    assert f"{result.numbers['parameters']['after']:,}" in card
    assert f"{result.numbers['perplexity'][0]['after']:.2f}" in card
    sizes = [tensor.numel() for tensor in load_file(result.out / "model.safetensors").values()]
    assert sum(sizes) == result.numbers["parameters"]["after"]
    assert result.numbers["bytes"]["after"] == (result.out / "model.safetensors").stat().st_size
    settings = read_toml(tmp_path / "small" / "run.toml")
    assert settings["calibration"] == str(text_file)
    assert len(list(tmp_path.glob("*.partial-*"))) == 0


def test_a_plan_applied_is_the_model_pruned(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("llama-biased")
    settings = {**SMALL, "calibration": str(text_file)}
    secateur.prune(folder, out=tmp_path / "direct", **settings)
    secateur.prune(folder, out=tmp_path / "plan", dry_run=True, **settings)
    assert [path.name for path in (tmp_path / "plan").iterdir()] == ["plan.json"]
    secateur.apply(read_plan(tmp_path / "plan"), folder, out=tmp_path / "applied")
    says_what_was_asked = ("run.toml", "README.md", "report.json", "report.html")
    assert_same_folder(tmp_path / "direct", tmp_path / "applied", but=says_what_was_asked)


def test_an_edited_plan_is_what_is_cut(tiny_folder: Any, text_file: Path, tmp_path: Path) -> None:
    folder = tiny_folder()
    plan = secateur.prune(folder, dry_run=True, calibration=str(text_file), **SMALL).plan
    structure = secateur.open_model(folder).structure
    raw = json.loads(plan.to_json(structure))
    raw["axes"][0]["keep"], raw["axes"][1]["keep"] = "2", "0-3,9"
    edited = secateur.Plan.from_json(json.dumps(raw))
    secateur.apply(edited, folder, out=tmp_path / "small", evaluate="none")
    layer = secateur.load(tmp_path / "small").model.layers[0]
    assert (layer.self_attn.k_proj.out_features, layer.mlp.up_proj.out_features) == (10, 5)
    weights = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(layer.mlp.up_proj.weight, weights[[0, 1, 2, 3, 9]])


def test_another_fine_tune_takes_the_plan_with_a_note(text_file: Path) -> None:
    tokenizer = tiny_tokenizer()
    common = {"tokenizer": tokenizer, "calibration": str(text_file)}
    plan = secateur.prune(tiny_model(seed=0), dry_run=True, **common, **SMALL).plan
    result = secateur.apply(plan, tiny_model(seed=1), tokenizer=tokenizer, evaluate="none")
    assert any("other weights" in note for note in result.notes)


def test_the_ratio_is_of_what_was_asked(text_file: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    common = {"tokenizer": tokenizer, "calibration": str(text_file), "dry_run": True}
    of_linears = secateur.prune(model, of="linears", **common, **{**SMALL, "align": 1})
    of_model = secateur.prune(model, of="model", **common, **{**SMALL, "align": 1})
    total, prunable = of_model.structure.parameters, of_model.structure.prunable
    unit = max(axis.cost for axis in of_model.structure.axes)
    for result, budget in ((of_linears, 0.3 * prunable), (of_model, 0.3 * total)):
        assert abs(result.plan.removed_cost(result.structure) - budget) <= unit


def test_statistics_do_not_depend_on_the_batch(text_file: Path) -> None:
    common = {"tokenizer": tiny_tokenizer(), "calibration": str(text_file), "dry_run": True}
    plans = [secateur.prune(tiny_model(), batch=n, **common, **SMALL).plan for n in (1, 5, 12)]
    assert plans[0].keep == plans[1].keep == plans[2].keep


def test_the_squared_attention_metric_is_an_option_that_changes_attention_only(
    text_file: Path,
) -> None:
    from secateur.pipeline import scores
    from secateur.stats import Walk, collect

    opened = secateur.open_model(tiny_model())
    ids = torch.randint(3, 128, (4, 16))
    walk = Walk(opened.streamed(device="cpu"), ids, batch=4)
    statistics = collect(walk, opened.structure.axes, ["input_var"])
    plain, squared = (
        scores(
            opened.structure.axes, "wifv", opened.weights, statistics, seed=0, square_attention=on
        )
        for on in (False, True)
    )
    for axis in opened.structure.axes:
        power = 2 if axis.kind == "attention" else 1
        assert torch.allclose(squared[axis.name], plain[axis.name] ** power)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_on_disk_and_computes_in_what_is_asked(
    dtype: torch.dtype, tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("qwen2-gqa", dtype=dtype)
    common = {"calibration": str(text_file), **SMALL}
    own = secateur.prune(folder, out=tmp_path / "own", **common)
    secateur.prune(folder, out=tmp_path / "full", dtype="float32", **common)
    for out in ("own", "full"):
        tensors = load_file(tmp_path / out / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    values = own.numbers["perplexity"][0]
    assert 0 < values["before"] < 10_000
    assert secateur.load(tmp_path / "full").dtype == dtype


def test_own_samples_serve_as_calibration_text(tiny_folder: Any, tmp_path: Path) -> None:
    for out in ("one", "two"):
        secateur.prune(tiny_folder(), out=tmp_path / out, calibration="self", **SMALL)
    settings = read_toml(tmp_path / "one" / "run.toml")
    assert settings["calibration"] == "self"
    one, two = ((tmp_path / out / "plan.json").read_bytes() for out in ("one", "two"))
    assert one == two


_PROMISE = [(model, ratio) for model in ("stories260K", "TinyStories-656K") for ratio in (0.2, 0.5)]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "ratio"), _PROMISE)
def test_flap_beats_random_and_magnitude_on_real_models(
    model: str, ratio: float, tmp_path: Path
) -> None:
    folder = shared(f"models/{model}")
    stories = (SHARED / "data" / "tinystories-sample.txt").read_text().split("<|endoftext|>")
    half = len(stories) // 2
    parts = {"calibration": stories[:half], "heldout": stories[half:]}
    for name, part in parts.items():
        (tmp_path / f"{name}.txt").write_text("<|endoftext|>".join(part))
    found = {}
    for method in ("flap", "random", "magnitude"):
        result = secateur.prune(
            folder,
            method=method,
            ratio=ratio,
            calibration=str(tmp_path / "calibration.txt"),
            evaluate=str(tmp_path / "heldout.txt"),
            evaluate_tokens=50_000,
        )
        found[method] = result.numbers["perplexity"][0]["after"]
    assert found["flap"] < found["random"]
    assert found["flap"] < found["magnitude"]


def test_what_is_evaluated_on_does_not_change_what_is_calibrated_on(
    tiny_folder: Any, text_file: Path
) -> None:
    """A short text, so that every token that is set aside is missed."""
    folder = tiny_folder()
    options = {"calibration": str(text_file), "samples": 500, "length": 16, "ratio": 0.3}
    plans, weights = [], []
    for evaluate in ("spare", "none", str(text_file)):
        result = secateur.prune(folder, evaluate=evaluate, **options)
        plans.append(result.plan.keep)
        weights.append(result.load().state_dict())
    assert plans[0] == plans[1] == plans[2]
    for other in weights[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items())
