"""The command line on good input: what it prints, what it writes, and that it repeats."""

import inspect as python_inspect
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import transformers
from safetensors.torch import load_file

import secateur
from conftest import EVERY_FAMILY_SLOWLY, tiny_model, tiny_tokenizer
from secateur import data
from secateur.cli.main import cli, run
from secateur.cli.screen import print_json, table
from secateur.config import PRUNE_GROUPS, RECOVER_GROUPS, PruneConfig, RecoverConfig
from secateur.importance import IMPORTANCE, Importance
from secateur.methods import METHODS
from secateur.search import SEARCHES
from secateur.surgery import REPAIRS

COMMANDS = {
    *(
        "prune",
        "apply",
        "bench",
        "recover",
        "compare",
        "report",
        "evaluate",
        "export",
        "inspect",
        "convert",
        "discover",
        "store",
        "sweep",
    ),
}

Said = Callable[..., str]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def elements(folder: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())


# --- prune ----------------------------------------------------------------------------------------


@pytest.fixture
def calibrated(calibrated: list[str]) -> list[str]:
    """A method that tries nothing: what it chooses is not what these tests are about."""
    return [*calibrated, "--method", "flap"]


def test_json_is_one_object_with_numbers_that_the_folder_bears_out(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    small = tmp_path / "small"
    out = said("prune", model, *calibrated, "--ratio", "0.3", "--out", small, "--json")
    assert out.count("\n") == 1
    found = json.loads(out)
    assert found["out"] == str(small)
    assert found["notes"] == []
    assert found["settings"]["ratio"] == 0.3
    results = found["results"]
    assert results["parameters"] == {"before": elements(model), "after": elements(small)}
    size = (small / "model.safetensors").stat().st_size
    before = (model / "model.safetensors").stat().st_size
    assert results["bytes"] == {"before": before, "after": size}
    prunable = results["prunable_parameters"]
    share = 1 - prunable["after"] / prunable["before"]
    assert results["removed_share"] == pytest.approx(share)
    # The last unit that goes brings the share nearest to the ratio: half a KV group at most.
    assert abs(results["removed_share"] - 0.3) <= 0.5 * 60 * 48 * 2 / prunable["before"]
    assert found["kept"] == {
        axis["name"]: axis["kept"] for axis in json.loads((small / "plan.json").read_text())["axes"]
    }
    assert all(
        entry["before"] > 1 and entry["after"] > 1 and entry["tokens"] > 0
        for entry in results["perplexity"]
    )
    assert set(found["seconds"]) >= {"statistics", "scores and search", "cut", "write", "total"}
    assert sum(found["seconds"].values()) <= 2 * found["seconds"]["total"]


def test_the_table_says_what_stays_and_the_numbers(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    small = tmp_path / "small"
    out = said("prune", model, *calibrated, "--ratio", "0.3", "--out", small)
    found = json.loads(
        said("prune", model, *calibrated, "--ratio", "0.3", "--out", tmp_path / "again", "--json")
    )
    for number in found["results"]["parameters"].values():
        assert f"{number:,}" in out
    for layer in range(3):
        kept = found["kept"][f"layers.{layer}.mlp"]
        assert re.search(rf"│ {layer} +│.*│ +{kept} of 56 │", out)
    for entry in found["results"]["perplexity"]:
        assert f"windows of {entry['window']}" in out
        assert f"{entry['before']:.2f}" in out
        assert f"{entry['after']:.2f}" in out
    assert "calibration.txt" in out


def test_a_pruned_folder_has_every_promised_file_as_readable_as_the_others(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    small = tmp_path / "small"
    said("prune", model, *calibrated, "--out", small)
    names = {"config.json", "model.safetensors", "plan.json", "run.toml", "README.md"}
    assert set(files(small)) >= names | {"tokenizer.json", "tokenizer_config.json"}
    modes = {path.name: path.stat().st_mode & 0o777 for path in small.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_without_evaluation_no_perplexity_is_reported(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    options = [*calibrated, "--evaluate", "none", "--out", tmp_path / "small"]
    assert "perplexity" not in json.loads(said("prune", model, *options, "--json"))["results"]
    assert "perplexity" not in said("prune", model, *options, "--force")


def test_a_ratio_of_nothing_keeps_every_weight(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    said("prune", model, *calibrated, "--ratio", "0", "--out", tmp_path / "same")
    before, after = (load_file(f / "model.safetensors") for f in (model, tmp_path / "same"))
    assert set(before) == set(after)
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_prunes_to_the_ratio(
    method: str, model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    options = ["--method", method, "--ratio", "0.3", "--json", "--out", tmp_path / "small"]
    found = json.loads(said("prune", model, *calibrated, *options))
    assert found["results"]["removed_share"] == pytest.approx(0.3, abs=0.04)
    assert elements(tmp_path / "small") < elements(model)


def test_force_replaces_a_pruned_folder_and_leaves_no_second_one(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    small = tmp_path / "small"
    said("prune", model, *calibrated, "--ratio", "0.2", "--out", small)
    (small / "LICENSE").write_text("of the first run")
    said("prune", model, *calibrated, "--ratio", "0.5", "--out", small, "--force")
    assert "ratio = 0.5" in (small / "run.toml").read_text()
    assert not (small / "LICENSE").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if "small" in path.name) == ["small"]


def test_a_link_given_as_out_is_followed(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk", target_is_directory=True)
    said("prune", model, *calibrated, "--out", link)
    assert link.is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").is_file()


def test_a_new_folder_may_lie_deep(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    small = tmp_path / "a" / "b" / "small"
    said("prune", model, *calibrated, "--out", small)
    assert list(small.parent.iterdir()) == [small]


def test_fewer_windows_than_asked_for_are_noted(
    model: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prune", str(model), "--calibration", str(text_file), "--length", "64"]
    assert run([*arguments, "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    notes = json.loads(out)["notes"]
    assert len(notes) == 1
    assert "not the 128 asked for" in notes[0]
    assert f"Note: {notes[0]}\n" in err


# --- plans and repeating --------------------------------------------------------------------------


def test_a_dry_run_writes_the_plan_alone(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    plan, small = tmp_path / "plan", tmp_path / "small"
    out = said("prune", model, *calibrated, "--ratio", "0.3", "--dry-run", "--out", plan)
    assert list(files(plan)) == ["plan.json"]
    assert str(plan / "plan.json") in out.replace("\n", "")
    said("prune", model, *calibrated, "--ratio", "0.3", "--out", small)
    assert files(plan)["plan.json"] == files(small)["plan.json"]


def test_a_dry_run_without_out_writes_nothing(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert "nothing written" in said("prune", model, *calibrated, "--dry-run")
    found = json.loads(said("prune", model, *calibrated, "--dry-run", "--json"))
    assert found["out"] is None
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("method", "more"), [("flap", []), ("magnitude", ["--evaluate", "none"])])
def test_a_dry_run_applied_gives_the_bytes_of_pruning_directly(
    method: str, more: list[str], model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    options = [*calibrated, "--method", method, "--ratio", "0.3"]
    said("prune", model, *options, "--dry-run", "--out", tmp_path / "plan")
    said("apply", tmp_path / "plan", model, *more, "--out", tmp_path / "applied")
    said("prune", model, *options, "--out", tmp_path / "direct")
    applied, direct = files(tmp_path / "applied"), files(tmp_path / "direct")
    assert applied.keys() == direct.keys()
    for name in ("model.safetensors", "config.json", "plan.json"):
        assert applied[name] == direct[name], name


def test_an_edited_plan_is_applied_as_edited(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    said("prune", model, *calibrated, "--dry-run", "--out", tmp_path / "plan")
    file = tmp_path / "plan" / "plan.json"
    plan = json.loads(file.read_text())
    for axis in plan["axes"]:
        axis["keep"] = "1" if axis["name"].endswith("attention") else "0-3,50"
    file.write_text(json.dumps(plan))
    out = said("apply", file, model, "--repair", "none", "--out", tmp_path / "small", "--json")
    assert set(json.loads(out)["kept"].values()) == {1, 5}
    before, after = (load_file(f / "model.safetensors") for f in (model, tmp_path / "small"))
    name = "model.layers.2.mlp.down_proj.weight"
    assert after[name].equal(before[name][:, [0, 1, 2, 3, 50]])
    name = "model.layers.1.self_attn.k_proj.weight"
    assert after[name].equal(before[name][10:20])


def test_run_toml_repeats_the_folder_byte_for_byte(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    one, two, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
    options = ["--ratio", "0.3", "--method", "flap", "--seed", "7", "--layers", "0,2"]
    said("prune", model, *calibrated, *options, "--out", one)
    said("prune", "--config", one / "run.toml", "--out", two)
    assert files(one) == files(two)
    said("prune", "--config", one / "run.toml", "--seed", "8", "--out", other)
    assert "seed = 8" in (other / "run.toml").read_text()
    assert "ratio = 0.3" in (other / "run.toml").read_text()
    assert files(one)["model.safetensors"] != files(other)["model.safetensors"]


# --- evaluate and inspect -------------------------------------------------------------------------


def test_evaluate_finds_the_perplexity_that_prune_reported(
    model: Path, calibrated: list[str], text_file: Path, tmp_path: Path, said: Said
) -> None:
    small = tmp_path / "small"
    options = [*calibrated, "--ratio", "0.3", "--evaluate", text_file, "--out", small, "--json"]
    (reported,) = json.loads(said("prune", model, *options))["results"]["perplexity"]
    for folder, when in ((model, "before"), (small, "after")):
        found = json.loads(said("evaluate", folder, "--evaluate", text_file, "--json"))
        assert found["model"] == str(folder)
        assert found["text"] == str(text_file)
        (one,) = found["perplexity"]
        assert 0 < one.pop("standard_error") < one["perplexity"] / 5
        assert one == {"window": 64, "perplexity": reported[when], "tokens": reported["tokens"]}


def test_evaluate_prints_one_row_for_each_window(model: Path, text_file: Path, said: Said) -> None:
    arguments = [
        "evaluate",
        model,
        "--evaluate",
        text_file,
        "--evaluate-lengths",
        "8,32",
        "--evaluate-tokens",
        "640",
    ]
    found = json.loads(said(*arguments, "--json"))["perplexity"]
    assert [(entry["window"], entry["tokens"]) for entry in found] == [(8, 560), (32, 620)]
    out = said(*arguments)
    for entry in found:
        assert math.isfinite(entry["perplexity"])
        value = f"{entry['perplexity']:.3f} ± {entry['standard_error']:.3f}"
        assert re.search(rf"│ {entry['window']} +│ +{value} │", out)


def test_evaluate_sets_the_dense_model_beside(
    pruned: Callable[..., Path], text_file: Path, tmp_path: Path, said: Said
) -> None:
    small = pruned()
    dense = next(tmp_path.glob("dense-*"))
    given = ["--evaluate", text_file, "--evaluate-lengths", "16,32", "--evaluate-tokens", "640"]
    arguments = ["evaluate", small, *given, "--against", dense, "--prompt", "The tree"]
    arguments += ["--continuations", "2", "--new-tokens", "4"]
    found = json.loads(said(*arguments, "--json"))
    for folder, name in ((small, "perplexity"), (dense, "dense_perplexity")):
        alone = json.loads(said("evaluate", folder, *given, "--json"))["perplexity"]
        for one, other in zip(found[name], alone, strict=True):
            assert one == pytest.approx(other)
    for one in found["agreement"]:
        assert 0 < one["kl"]["standard_error"] < one["kl"]["value"]
        assert 0 < one["top1"]["value"] < 1
    assert len(found["continuations"]) == 3
    assert found["continuations"][0]["prompt"] == "The tree"
    for when, folder in (("text", small), ("dense", dense)):
        model, tokenizer = secateur.load(folder), tiny_tokenizer()
        ids = torch.tensor([tokenizer("The tree")["input_ids"]])
        wanted = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0]
        text = tokenizer.decode(wanted[ids.shape[1] :], skip_special_tokens=True)
        assert found["continuations"][0][when] == text
    out = said(*arguments)
    for word in ("KL", "top-1", "dense", "Continued greedily", "± is one standard error"):
        assert word in out


def test_evaluate_says_which_part_of_a_data_set_it_reads(
    model: Path, text_file: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hub_rows(data_set: Any, *, use: str, seed: int | None) -> Any:
        return iter([{"text": text_file.read_text()}])

    monkeypatch.setattr("secateur.data.sources.hub_rows", hub_rows)
    options = ["--evaluate-lengths", "16", "--evaluate-tokens", "64"]
    for name, part in (("wikitext2", "the split test"), ("c4", "c4-validation.00000-of-00008")):
        assert part in said("evaluate", model, "--evaluate", name, *options).replace("\n", "")


@pytest.mark.parametrize(("width", "lines"), [(80, 2), (120, 1)])
def test_a_narrow_terminal_breaks_headings_between_words_and_nothing_else(
    width: int, lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    heads = ("method", "linears removed", "perplexity, window 128", "perplexity, window 512",
             "weights, MB", "time, s")  # fmt: skip
    table("Compared", heads, [("magnitude-l1", "20.0%", "1,143.3", "47.9", "15,435.66", "13.6")])
    out = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in out)
    assert sum("┃" in line for line in out) == lines
    (row,) = (line for line in out if line.startswith("│"))
    assert row.replace("│", " ").split() == [
        "magnitude-l1", "20.0%", "1,143.3", "47.9", "15,435.66", "13.6",
    ]  # fmt: skip
    words = {word for line in out if "┃" in line for word in line.replace("┃", " ").split()}
    assert words == {word for head in heads for word in head.split()}


def test_what_is_not_finite_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1.5, float("nan")], "b": (float("inf"), "NaN"), "c": None, "d": True})
    text = capsys.readouterr().out
    assert json.loads(text) == {"a": [1.5, None], "b": [None, "NaN"], "c": None, "d": True}
    assert "NaN," not in text


def test_inspect_shows_the_layers_of_any_folder(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    small = tmp_path / "small"
    kept = json.loads(said("prune", model, *calibrated, "--ratio", "0.4", "--out", small, "--json"))
    for folder, name in ((model, "LlamaForCausalLM"), (small, "SecateurLlamaForCausalLM")):
        found = json.loads(said("inspect", folder, "--json"))
        assert found["facts"]["class"] == name
        assert found["facts"]["family"] == "llama"
        assert found["facts"]["parameters"] == elements(folder)
        rows = [row for row in found["layers"] if row["kind"] == "mlp"]
        assert [row["layer"] for row in rows] == [0, 1, 2]
        out = said("inspect", folder)
        assert name in out
        assert f"{elements(folder):,}" in out
        if folder == model:
            dense = [row["of"] for row in rows]
    for row in rows:
        width = kept["kept"][f"layers.{row['layer']}.mlp"]
        assert (row["kept"], row["of"]) == (width, dense[row["layer"]])
        assert f"{width} of {row['of']}" in out
    heads = next(row for row in found["layers"] if row["kind"] == "attention")
    assert heads["units_kept"] == kept["kept"]["layers.0.attention"]
    assert heads["of"] == 2 * heads["units"] == 6
    assert found["facts"]["method"] == "flap"
    assert found["facts"]["repair"] == "bias"


IDLE = {"fine", "members", "target", "damping", "scale", "rescore", "stock", "square_attention"}


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"importance": "wifv"}, set()),
        ({"importance": "taylor-first"}, {"members"}),
        ({"fusion": "regression"}, {"fine"}),
        ({"importance": "wifv", "repair": "refit"}, {"target"}),
        ({"importance": "wifv", "stock": True, "rescore": True}, {"stock", "rescore"}),
        ({"importance": "magnitude-l2", "search": "global", "scale": "log"}, {"scale"}),
        ({"importance": "of-someone", "fusion": ["odd"], "search": 7, "repair": "x"}, set()),
    ],
)
def test_inspect_lists_the_settings_that_were_looked_at(
    changes: dict[str, Any], read: set[str], tmp_path: Path, said: Said
) -> None:
    usual = {
        "method": "flap", "fine": "first", "members": "sum", "target": "residual", "scale": None,
        "stock": False, "rescore": False, "square_attention": False, "search": "uniform",
    }  # fmt: skip
    settings = {**usual, **changes}
    repair = settings.pop("repair", "none")
    plan = {
        "format": "secateur-plan-1", "architecture": "a", "weights": "w", "repair": repair,
        "calibration": {}, "settings": settings,
        "axes": [{"name": "layers.0.mlp", "units": 2, "keep": "0"}],
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    facts = json.loads(said("inspect", tmp_path, "--json"))["facts"]
    assert IDLE & facts.keys() == read
    assert (facts["method"], facts["repair"]) == ("flap", repair)


def said_with_notes(command: list[Any]) -> None:
    assert run([str(word) for word in command]) == 0


def test_a_plan_that_keeps_everything_is_noted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, quick = tmp_path / "plan", ["--evaluate", "none", "--out"]
    said_with_notes(["prune", model, "--method", "random", "--ratio", "0", *quick, plan])
    assert capsys.readouterr().err == ""
    said_with_notes(["apply", plan, model, *quick, tmp_path / "same"])
    assert "nothing is removed: the plan keeps every unit" in capsys.readouterr().err


def test_inspect_prints_and_draws_the_blend_that_the_run_found(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said, assert_refused: Any
) -> None:
    small, picture = tmp_path / "small", tmp_path / "blend.svg"
    method = ["--method", "hywia", "--layers", "0-2", "--samples", "8"]
    done = json.loads(said("prune", model, *calibrated, *method, "--out", small, "--json"))
    blend = done["results"]["blend"]
    assert json.loads(said("inspect", small, "--json"))["blend"] == blend
    out = said("inspect", small, "--picture", picture)
    for axis, share in blend.items():
        _, layer, kind = axis.split(".")
        assert re.search(rf"│ {layer} +│ +{kind} │ +{share['coarse']:.2f} │", out)
    assert "decoder layer" in picture.read_text()
    flat = tmp_path / "flat"
    said("prune", model, *calibrated, "--out", flat)
    assert json.loads(said("inspect", flat, "--json"))["blend"] is None
    assert_refused("inspect", flat, "--picture", tmp_path / "no.svg", says=["no blend to draw"])


def test_inspect_reads_a_folder_with_a_plan_alone(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    plan = tmp_path / "plan"
    kept = json.loads(said("prune", model, *calibrated, "--dry-run", "--out", plan, "--json"))
    found = json.loads(said("inspect", plan, "--json"))
    assert {row["axis"]: row["kept"] for row in found["layers"]} == kept["kept"]
    assert all(row["kept"] < row["of"] for row in found["layers"] if row["axis"].endswith("mlp"))
    assert "layers.0.mlp" in said("inspect", plan / "plan.json")


def test_inspect_counts_where_two_plans_differ(
    model: Path, calibrated: list[str], tmp_path: Path, said: Said
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    kept = {}
    for folder, seed in ((one, "1"), (two, "2")):
        options = ["--method", "random", "--seed", seed, "--ratio", "0.4", "--out", folder]
        kept[folder] = json.loads(said("prune", model, *calibrated, *options, "--json"))["kept"]
    rows = json.loads(said("inspect", one, "--against", two, "--json"))["layers"]
    assert {row["axis"] for row in rows} == set(kept[one])
    for row in rows:
        assert row["kept by both"] + row["only this one"] == kept[one][row["axis"]]
        assert row["kept by both"] + row["only the other"] == kept[two][row["axis"]]
    assert any(row["only this one"] for row in rows)
    same = json.loads(said("inspect", one, "--against", one, "--json"))["layers"]
    assert not any(row["only this one"] or row["only the other"] for row in same)
    assert "kept by both" in said("inspect", one, "--against", two)


# --- help -----------------------------------------------------------------------------------------


def examples(command: click.Command) -> list[list[str]]:
    lines = python_inspect.cleandoc(command.help or "").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("secateur ")]


def test_the_commands_are_those_of_the_documentation() -> None:
    assert set(cli.list_commands(None)) == COMMANDS


@pytest.mark.parametrize("name", ["", *sorted(COMMANDS)])
def test_every_help_shows_examples_that_the_parser_takes(name: str, said: Said) -> None:
    command: click.Command = cli.get_command(None, name) if name else cli
    shown = said(*([name] if name else []), "--help")
    found = examples(command)
    assert found
    for example in found:
        assert " ".join(["secateur", *example]) in shown
        assert not name or example[0] == name
        context = cli.get_command(None, example[0]).make_context(example[0], example[1:])
        assert context.params


def test_prune_help_names_every_choice_and_every_setting(said: Said) -> None:
    shown = said("prune", "--help-all").replace("--[no-]", "--")
    words = set(re.findall(r"[\w-]+", shown))
    choices = {*METHODS, *IMPORTANCE, *SEARCHES, *REPAIRS, *data.HUB_SETS, "self", data.EMBEDDED}
    assert choices <= words
    for setting in set(PruneConfig.model_fields) - {"model"}:
        assert f"--{setting.replace('_', '-')}" in words


def test_a_score_without_a_description_leaves_those_of_the_others(said: Said) -> None:
    def plain(weight: torch.Tensor) -> torch.Tensor:
        return weight

    own = Importance("own-and-undescribed", plain, "", frozenset({"weight"}))
    IMPORTANCE[own.name] = own
    lines = said("prune", "--help-all").splitlines()
    assert f"  {own.name}" in (line.rstrip() for line in lines)
    assert any(re.match(r"  taylor-vector +Magnitude of weight times", line) for line in lines)


@pytest.mark.parametrize(
    ("settings", "groups"), [(PruneConfig, PRUNE_GROUPS), (RecoverConfig, RECOVER_GROUPS)]
)
def test_every_setting_is_in_one_group_of_the_help(settings: Any, groups: Any) -> None:
    grouped = [name for both in groups.values() for part in both for name in part.split()]
    assert len(grouped) == len(set(grouped))
    assert set(settings.model_fields) - {"model"} <= set(grouped)


@pytest.mark.parametrize("name", ["prune", "apply", "recover", "compare", "evaluate"])
def test_help_is_short_and_names_what_help_all_shows(
    name: str, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short, full = said(name, "--help"), said(name, "--help-all")
    assert len(short.splitlines()) <= 66 < len(full.splitlines()) or name in ("apply", "evaluate")
    lines = [line for line in (short + full).splitlines() if "secateur " not in line]
    assert max(map(len, lines)) <= 80
    command = cli.get_command(None, name)
    options = [p for p in command.params if isinstance(p, click.Option)]
    for option in options:
        row = rf"^  {option.opts[0]}\b"
        assert re.search(row, full.replace("--[no-]", "--"), re.MULTILINE), option.name
        assert re.search(rf"{option.opts[0]}\b", short), option.name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            ["evaluate", "MODEL", "--text=TEXT", "--windows", "16", "--tokens=64"],
            [
                "evaluate",
                "MODEL",
                "--evaluate",
                "TEXT",
                "--evaluate-lengths",
                "16",
                "--evaluate-tokens",
                "64",
            ],
        ),
        (["recover", "MODEL", "--with", "distill"], ["recover", "MODEL", "--recipe", "distill"]),
    ],
    ids=lambda words: words[0],
)
def test_options_keep_the_names_that_they_had(
    old: list[str], new: list[str], model: Path, text_file: Path, capsys: Any
) -> None:
    def ran(words: list[str]) -> tuple[int, str, list[str]]:
        names = {"MODEL": str(model), "TEXT": str(text_file)}
        code = run([names.get(w, w.replace("TEXT", str(text_file))) for w in words])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    before, after = ran([*old, "--json"]), ran([*new, "--json"])
    renamed = [line for line in before[2] if line.startswith("Note: --") and " is now --" in line]
    assert len(renamed) == sum(word.startswith("--") for word in old)
    assert before[:2] == after[:2]
    assert [line for line in before[2] if line not in renamed] == after[2]


def test_arguments_keep_the_names_that_they_had(
    model: Path, text_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="secateur"):
        old = secateur.evaluate(model, str(text_file), windows=[16], tokens=64)
    now = {"windows is now evaluate_lengths", "tokens is now evaluate_tokens"}
    assert now <= {record.getMessage() for record in caplog.records}
    assert old == secateur.evaluate(
        model, str(text_file), evaluate_lengths=[16], evaluate_tokens=64
    )


def test_no_arguments_show_the_help(said: Said) -> None:
    assert said() == said("--help")


def test_help_does_not_wait_for_transformers() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "secateur", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage: secateur" in result.stdout
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "click" in loaded
    assert not {"transformers", "torch", "pydantic"} & loaded


def test_a_process_whose_output_is_no_terminal_is_quiet(
    model: Path, calibrated: list[str], tmp_path: Path
) -> None:
    """A process of its own: bars, warnings and notices of libraries would all come out here.

    On a busy machine a stage takes more than two seconds, and then a line says so.
    """
    command = [sys.executable, "-m", "secateur", "prune", str(model), *calibrated, "--json"]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "small")],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    lines = result.stderr.splitlines()
    ours = re.compile(r"[a-z ]+(, \d+)?: (\d+:\d\d so far|\w+ \d+ of \d+.*)")
    assert (result.returncode, [line for line in lines if not ours.fullmatch(line)]) == (0, [])
    assert json.loads(result.stdout)["out"] == str(tmp_path / "small")


def test_transformers_is_silent_in_every_command(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    """What it has to say of a config would run through what is printed."""
    cut = ["--method", "magnitude", "--evaluate", "none"]
    for command in (
        ["inspect", model],
        ["discover", model],
        [
            "evaluate",
            model,
            "--evaluate",
            text_file,
            "--evaluate-lengths",
            "16",
            "--evaluate-tokens",
            "64",
        ],
        ["prune", model, *cut, "--out", tmp_path / "small"],
        ["apply", tmp_path / "small", model, "--evaluate", "none", "--out", tmp_path / "again"],
        ["compare", model, "--methods", "magnitude", "--ratios", "0.2", "--evaluate", "none"],
    ):
        transformers.logging.set_verbosity_warning()
        said_with_notes(command)
        assert transformers.logging.get_verbosity() == transformers.logging.ERROR, command


# --- data -----------------------------------------------------------------------------------------


def test_a_line_of_jsonl_may_hold_every_other_line_separator(tmp_path: Path) -> None:
    texts = ["one\u2028two", "three\x85four", "five\u2029six"]
    file = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    file.write_text("\n".join(lines), encoding="utf-8")
    found: list[Any] = list(data.documents(str(file), use="calibration", seed=None))
    assert found == texts


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_every_method_prunes_every_family(
    variant: str, tiny_folder: Any, calibrated: list[str], tmp_path: Path, capsys: Any
) -> None:
    folder = str(tiny_folder(variant))
    before = sum(p.numel() for p in tiny_model(variant).parameters())
    for method in ("flap", "wanda-sp", "magnitude", "random"):
        out = str(tmp_path / method)
        arguments = ["prune", folder, "--method", method, "--ratio", "0.3", "--out", out]
        assert run([*arguments, *calibrated, "--evaluate", "none", "--json"]) == 0
        numbers = json.loads(capsys.readouterr().out)["results"]["parameters"]
        small = secateur.load(out)
        assert sum(p.numel() for p in small.parameters()) == numbers["after"] < before
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        assert torch.isfinite(small(ids).logits).all()


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        (["--members", "max"], "--members"),
        (["--target", "own_output"], "--target"),
        (["--damping", "0.5"], "--damping"),
        (["--method", "wanda-sp", "--scale", "log"], "--scale"),
        (["--ratio", "0.00001"], "nothing is removed"),
    ],
)
def test_settings_that_change_nothing_are_noted(
    options: list[str], idle: str, model: Path, calibrated: list[str], capsys: Any
) -> None:
    command = ["prune", model, *calibrated, "--dry-run", *options]
    assert run([str(part) for part in command]) == 0
    assert idle in capsys.readouterr().err


def test_a_text_named_for_perplexity_must_be_long_enough(
    model: Path, calibrated: list[str], tmp_path: Path, assert_refused: Any
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few letters")
    command = ["prune", model, *calibrated, "--evaluate", short, "--out", tmp_path / "small"]
    assert_refused(*command, says=["13 tokens", "one window of 64", "--evaluate none"])
