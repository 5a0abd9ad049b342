"""A training that ranks share is the one that a single process makes, and is really divided."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from conftest import Cut
from secateur.cli.main import run
from secateur.config.toml import read_record
from secateur.recovery import saving

HERE = Path(__file__).parent
# Steps of 5 examples are no even share, nor are the 3 that are held out.
COMMON: dict[str, Any] = {
    "steps": 6, "batch": 5, "length": 16, "samples": 37, "evaluate_tokens": 300, "prompts": 0,
    "dtype": "float32",
}  # fmt: skip
ALL = {"train": "all", "rate": 0.1}
ALIKE: dict[str, dict[str, Any]] = {
    "consumers": {},
    "all": ALL,
    "micro-batches": {**ALL, "micro": 1},
    "a rank without examples": {**ALL, "batch": 2},
    "lora": {"recipe": "lora", "rate": 0.01, "dropout": 0.0},
    "groupwise": {"recipe": "groupwise", "group": 16},
    "whole teacher": {"top_k": 0},
    "recomputed": {"recompute": "always"},
}
DIVIDED = [name for name in ALIKE if name != "groupwise"]


def text_of(text: Path) -> dict[str, Any]:
    return {**COMMON, "data": str(text), "evaluate": str(text)}


def words_of(settings: dict[str, Any]) -> list[str]:
    """The same as options."""
    return [word for name, value in settings.items()
            for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip


def torchrun(count: int, script: str, *words: object) -> "subprocess.CompletedProcess[str]":
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command = [*start, str(count), str(HERE / script), *map(str, words)]
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=500,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip


def trained(count: int, calls: list[Any], folder: Path) -> None:
    """Recoveries by several ranks."""
    file = folder / f"calls-{count}.json"
    file.write_text(json.dumps(calls))
    done = torchrun(count, "many_trainings.py", file)
    assert done.returncode == 0, done.stderr


def assert_alike(one: Path, other: Path) -> None:
    """The same losses, and weights that are the same but for the order in which sums are made."""
    curves = [
        [(check["step"], check.get("trained", 0), check["held_out"]) for check in checks]
        for checks in (checks_of(one), checks_of(other))
    ]
    assert len(curves[0]) == 7, "a check a step"
    for ours, theirs in zip(*curves, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3), (one, other)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if name.endswith(("zeros", "scales")):  # halves, as they lie in a file
            tensor, theirs[name] = tensor.view(torch.float16), theirs[name].view(torch.float16)
        assert torch.allclose(tensor.float(), theirs[name].float(), rtol=2e-3, atol=1e-3), name


def checks_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_record(folder / "recovery.toml")["results"]["checks"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_every_recipe_is_as_by_one_process(
    count: int, pruned: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder, settings = str(pruned()), text_of(text_file)
    shards = {f"{name}, shards": {**ALIKE[name], "shard": True} for name in DIVIDED}
    asked = {**ALIKE, **shards}
    calls = [
        [folder, str(tmp_path / name), None, {**settings, **own}] for name, own in asked.items()
    ]
    trained(count, calls, tmp_path)
    for name in asked:
        one = tmp_path / "alone" / name.removesuffix(", shards")
        if not one.exists():
            secateur.recover(folder, out=one, **{**settings, **ALIKE[one.name]})
        assert_alike(one, tmp_path / name)
        record = (tmp_path / f"{name}.json").read_text()
        for rank in range(1, count):
            assert (tmp_path / f"{name}-{rank}.json").read_text() == record, "all ranks know it"
    assert not list(tmp_path.glob("rank-*/*")), "one rank writes"
    assert not list(tmp_path.glob(".*training*"))


@pytest.mark.slow
def test_other_families_are_divided_too(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    """Tied embeddings, capped logits, a base inside the base, turned linears, experts."""
    settings = {**text_of(text_file), **ALL, "rate": 0.02}
    calls = []
    for variant in ("llama-tied", "gemma2", "opt", "gpt2", "mixtral", "bloom"):
        model = str(tiny_folder(variant))
        own = {**settings, "teacher": str(tiny_folder(variant, seed=1))}
        secateur.recover(model, out=tmp_path / "alone" / variant, **own)
        calls.append([model, str(tmp_path / variant), None, {**own, "shard": True}])
    trained(2, calls, tmp_path)
    for _, out, *_ in calls:
        assert_alike(tmp_path / "alone" / Path(out).name, Path(out))


@pytest.mark.slow
def test_another_number_of_ranks_goes_on(
    pruned: Callable[..., Path], text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One format of the state: whoever wrote it, divided or not, anybody takes it up."""
    monkeypatch.setattr(saving, "_FREE", math.inf)
    folder, settings = str(pruned()), {**text_of(text_file), **ALL}
    divided = {**settings, "shard": True}
    secateur.recover(folder, out=tmp_path / "alone", **settings)
    places = {name: str(tmp_path / name) for name in ("to one", "to three", "to two", "to shards")}
    trained(3, [[folder, places["to one"], 4, divided]], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        secateur.recover(folder, out=places["to two"], progress=Cut(3), **settings)
    begun = [[folder, places["to three"], 2, divided], [folder, places["to shards"], 5, settings]]
    trained(2, [*begun, [folder, places["to two"], None, divided]], tmp_path)
    done = secateur.recover(folder, out=places["to one"], **settings)
    assert "going on after step 4 of an earlier run" in done.notes
    ends = [
        [folder, places["to three"], None, settings],
        [folder, places["to shards"], None, divided],
    ]
    trained(3, ends, tmp_path)
    for out in places.values():
        assert_alike(tmp_path / "alone", Path(out))
    assert not list(tmp_path.glob(".*training*"))


@pytest.mark.slow
@pytest.mark.parametrize("own", [["--shard"], []], ids=["shards", "copies"])
def test_a_killed_rank_is_named_and_the_rest_is_gone_on_with(
    own: list[str], pruned: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "better"
    words = ["recover", str(pruned()), *words_of({**text_of(text_file), **ALL}), *own]
    done = torchrun(3, "training_rank.py", "killed", 1, 4, *words, "--out", out)
    assert done.returncode != 0
    assert re.search(r"^Error: rank 1 of 3 \(.+\) is gone", done.stderr, re.MULTILINE), done.stderr
    assert len(re.findall(r"^(?:Error: |This is a bug)", done.stderr, re.MULTILINE)) == 1
    assert not out.exists()
    again = torchrun(2, "training_rank.py", "none", "", 0, *words, "--out", out)
    assert again.returncode == 0, again.stderr
    assert "going on after step 4 of an earlier run" in again.stderr
    assert [path.name for path in out.parent.iterdir()] == ["better"]
    assert run([*words, "--out", str(tmp_path / "alone")]) == 0
    assert_alike(tmp_path / "alone", out)


@pytest.mark.slow
def test_a_rank_holds_its_shard_and_no_more(
    pruned: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    shapes = [t.shape for t in load_file(folder / "model.safetensors").values()]
    whole = sum(shape.numel() for shape in shapes)
    # rows are divided: the last rank may have fewer, and what it lacks is padding
    shard = sum(-(-shape[0] // 3) * shape[1:].numel() for shape in shapes)
    assert shard < 0.4 * whole
    words = ["recover", str(folder), *words_of({**text_of(text_file), **ALL})]
    sums = []
    for ranks, own, most in ((1, "", whole), (3, "", whole), (3, "--shard", shard)):
        (place := tmp_path / f"counted{ranks}{own}").mkdir()
        out = [*filter(None, [own]), "--out", str(tmp_path / f"out{ranks}{own}")]
        done = torchrun(ranks, "training_rank.py", "counted", place, 2, *words, *out)
        assert done.returncode == 0, done.stderr
        counts = [json.loads(file.read_text()) for file in place.iterdir()]
        assert len(counts) == ranks
        for count in counts:
            for what in ("parameters", "trained", "gradients", "best"):
                assert 0 < count[what] <= most, what
            assert 0 < count["moments"] <= 2 * most
            sums.append(torch.tensor(count["sums"]))
    for other in sums[1:]:  # a gradient that is divided by ranks trains alike: Adam knows no size
        assert torch.allclose(sums[0], other, rtol=2e-3)


@pytest.mark.slow
def test_the_same_number_of_ranks_makes_the_same_bytes(
    pruned: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder, settings = str(pruned()), {**text_of(text_file), "recipe": "lora", "dropout": 0.5}
    calls = [
        [folder, str(tmp_path / name), None, {**settings, "shard": shard, "rate": 0.01}]
        for name, shard in (("one", False), ("two", False), ("three", True), ("four", True))
    ]
    trained(2, calls, tmp_path)
    one, two, three, four = (
        (tmp_path / name).resolve() for name in ("one", "two", "three", "four")
    )
    for own, other in ((one, two), (three, four)):
        files = [(folder / "model.safetensors").read_bytes() for folder in (own, other)]
        assert files[0] == files[1]
    assert_alike(one, three)


def test_few_bits_are_not_divided(
    pruned: Callable[..., Path], text_file: Path, tmp_path: Path, assert_refused: Any
) -> None:
    words = ["recover", pruned(), "--data", text_file, "--recipe", "groupwise", "--shard"]
    assert_refused(*words, "--out", tmp_path / "out", says=["--shard", "Leave --shard out"])
