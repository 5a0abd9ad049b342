"""Recovery the whole way: the folder is whole, records repeat it, bad input is told."""

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from conftest import Cut, logits
from secateur.checkpoint import read_json
from secateur.cli.main import run
from secateur.config import LOSSES, RECIPES, make_recover_config, read_toml
from secateur.errors import SecateurError
from secateur.models import OpenModel, open_config, open_model
from secateur.pipeline import recovering, training
from secateur.pipeline.idle import idle_recovery_settings
from secateur.pipeline.look import bytes_before
from secateur.pipeline.student import Student, open_student
from secateur.pipeline.training import fingerprint
from secateur.pipeline.training_data import read_data, with_target
from secateur.progress import Quiet, telling

QUICK = {"steps": 4, "batch": 4, "micro": 2, "length": 16, "samples": 40}


def recovered(folder: Path, text: Path, out: Path, **settings: Any) -> Any:
    return secateur.recover(folder, data=str(text), out=out, **{**QUICK, **settings})


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_weights_that_stayed_for_a_measure_are_gone_when_training_begins(
    pruned: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole model takes their room on the device."""
    kept: list[int] = []
    plain, train = recovering._perplexities, recovering.train

    def measured(student: Any, *args: Any) -> Any:
        found = plain(student, *args)
        kept.append(len(student.source.supply._kept))
        return found

    def trained(student: Any, *args: Any, **more: Any) -> Any:
        kept.append(len(student.source.supply._kept))
        return train(student, *args, **more)

    monkeypatch.setattr(recovering, "_perplexities", measured)
    monkeypatch.setattr(recovering, "train", trained)
    evaluated = {"resident": "yes", "evaluate": str(text_file)}
    recovered(pruned(), text_file, tmp_path / "better", **evaluated)
    assert kept[0] > 0
    assert kept[1] == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recovered_folder_is_a_folder_like_the_one_before(
    recipe: str, pruned: Any, text_file: Path, tmp_path: Path, tokens: Tensor
) -> None:
    folder, out = pruned(), tmp_path / "better"
    done = recovered(folder, text_file, out, recipe=recipe)
    assert (out / "plan.json").read_bytes() == (folder / "plan.json").read_bytes()
    assert files(folder).keys() - files(out).keys() <= {"modeling_secateur.py"}
    model = secateur.load(out)
    plain = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    alone = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    expected = logits(model, tokens)
    assert torch.equal(logits(plain, tokens), expected)
    assert torch.equal(logits(alone, tokens), expected)
    measured = secateur.evaluate(out, str(text_file), evaluate_lengths=[16], evaluate_tokens=400)
    assert all(math.isfinite(one.value) for one in measured)
    card = (out / "README.md").read_text()
    for words in ("## Recovery", "trained", done.numbers["data"]["sha256"][:16], "held out"):
        assert words in card
    form = done.to_json()["results"]["form"]
    assert form["class"] == read_json(out / "config.json")["architectures"][0]
    assert form["stock"] == ("auto_map" not in read_json(out / "config.json"))
    assert bool(form["why_not_stock"]) != form["stock"]
    assert done.numbers["checks"][0]["step"] == 0
    assert read_toml(out / "recovery.toml")["dtype"] == "auto"
    assert done.numbers["dtype"] == "float32"  # what it came to
    assert not list(tmp_path.glob(".*training*"))
    assert any("are few" in note for note in done.notes)


def test_a_model_in_few_bits_is_small_runs_and_can_be_written_back(
    pruned: Any, text_file: Path, tmp_path: Path, tokens: Tensor, said: Any
) -> None:
    folder, out, plain = pruned(), tmp_path / "tiny", tmp_path / "plain"
    recovered(folder, text_file, out, recipe="groupwise", group=16)
    stored = load_file(out / "model.safetensors")
    assert {t.dtype for name, t in stored.items() if name.endswith("codes")} == {torch.uint8}
    whole = sum(p.numel() for name, p in load_file(folder / "model.safetensors").items())
    small = sum(t.numel() * t.itemsize for name, t in stored.items() if "_proj" in name)
    assert small < 0.5 * 2 * whole
    printed = said("convert", out, "--out", plain)
    (architecture,) = json.loads((plain / "config.json").read_text())["architectures"]
    assert f"({architecture}," in printed
    one, other = logits(secateur.load(out), tokens), logits(secateur.load(plain), tokens)
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    assert not any("codes" in name for name in load_file(plain / "model.safetensors"))
    rounds = [
        secateur.evaluate(f, str(text_file), evaluate_lengths=[16], evaluate_tokens=400)
        for f in (out, plain)
    ]
    assert rounds[0] == rounds[1]
    # and it can be pruned again, or recovered again
    again = tmp_path / "again"
    pruned_again = secateur.prune(
        out, calibration=str(text_file), samples=4, length=16, out=again, evaluate="none"
    )
    floats = recovered(out, text_file, tmp_path / "floats")
    bits = recovered(out, text_file, tmp_path / "bits", train="groupwise", group=16)
    for done, few in ((pruned_again, False), (floats, False), (bits, True)):
        assert torch.isfinite(logits(done.load(), tokens)).all()
        assert any("in few bits" in note for note in done.notes) != few
        assert open_model(done.out).packed == few


@pytest.mark.parametrize("recipe", RECIPES)
def test_same_seed_same_bytes_and_the_record_repeats_it(
    recipe: str, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    one, two = tmp_path / "one", tmp_path / "two"
    recovered(folder, text_file, one, recipe=recipe, evaluate="none")
    assert run(["recover", "--config", str(one / "recovery.toml"), "--out", str(two)]) == 0
    assert files(one) == files(two)
    recovered(folder, text_file, two, recipe=recipe, evaluate="none", seed=1, force=True)
    assert files(one) != files(two)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_process_run_again_ends_with_the_same_bytes(
    recipe: str, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    expected, out = tmp_path / "expected", tmp_path / "out"
    options = {"--steps": 60, "--batch": 8, "--length": 16, "--samples": 60, "--patience": 99}
    command = [
        sys.executable, "-m", "secateur", "recover", str(folder), "--recipe", recipe,
        "--data", str(text_file), *(str(part) for pair in options.items() for part in pair),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(expected)], check=True, env=environment)
    state = tmp_path / ".out.training.safetensors"
    process = subprocess.Popen([*command, "--out", str(out)], env=environment)
    while not state.exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(0.2 * len(recipe) / 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    subprocess.run([*command, "--out", str(out)], check=True, env=environment)
    assert files(expected) == files(out)
    assert not state.exists()


@pytest.mark.parametrize("train", ["consumers", "lora", "groupwise", "all"])
def test_distillation_trains_what_it_is_told_to(
    train: str, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder, out = pruned(), tmp_path / "better"
    rate = 0.01 if train in ("consumers", "all") else 1e-3
    done = recovered(folder, text_file, out, train=train, top_k=0, rate=rate)
    assert done.numbers["trained"] == train
    before, after = (secateur.load(f).state_dict() for f in (folder, out))
    if train != "groupwise":
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        consumers = ("o_proj", "down_proj")
        if train == "consumers":
            assert changed
            assert all(any(part in name for part in consumers) for name in changed)
        else:
            assert any("q_proj" in name for name in changed)
        assert ("model.embed_tokens.weight" in changed) == (train == "all")


def test_predictions_that_were_kept_teach_instructions_what_all_of_them_teach(
    pruned: Any, tmp_path: Path
) -> None:
    """Those before a token without a label were not asked for."""
    folder, file = pruned(), tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Say {n}:", "completion": f"{n} " * (n % 7 + 1)} for n in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    kept, anew = (
        recovered(folder, file, tmp_path / str(top), top_k=top, rate=0.01) for top in (127, 0)
    )
    for one, other in zip(kept.numbers["checks"], anew.numbers["checks"], strict=True):
        assert one["held_out"] == pytest.approx(other["held_out"], rel=1e-3)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("train", ["lora", "groupwise"])
def test_a_recipe_and_a_loss_are_what_a_distillation_of_the_same_is(
    train: str, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    losses = {None: "usual", "kl": "kl", "next-token": "next"}
    for loss, name in losses.items():
        done = recovered(folder, text_file, tmp_path / name, recipe=train, loss=loss)
        assert read_toml(done.out / "recovery.toml")["loss"] == (
            loss or {"lora": "next-token", "groupwise": "kl"}[train]
        )
    recovered(folder, text_file, tmp_path / "distilled", train=train)
    usual, kl, following, distilled = (
        weights(tmp_path / name) for name in ("usual", "kl", "next", "distilled")
    )
    assert kl == distilled != following
    assert usual == (kl if train == "groupwise" else following)


def test_few_bits_are_tuned_on_the_next_token_where_no_dense_model_is_known(
    pruned: Any, tiny_folder: Any, text_file: Path, tmp_path: Path, assert_refused: Any
) -> None:
    dense, live = tiny_folder(), tmp_path / "live"
    secateur.prune(
        secateur.load(dense), tokenizer=AutoTokenizer.from_pretrained(dense), out=live,
        calibration=str(text_file), samples=4, length=16, evaluate="none",
    )  # fmt: skip
    for folder in (dense, live):
        out, same = tmp_path / f"{folder.name}-few", tmp_path / f"{folder.name}-same"
        done = recovered(folder, text_file, out, recipe="groupwise", group=16)
        assert any("names no dense model" in note for note in done.notes)
        assert (done.config.loss, done.config.teacher) == ("next-token", None)
        said = recovered(folder, text_file, same, recipe="groupwise", group=16, loss="next-token")
        assert not any("names no dense model" in note for note in said.notes)
        assert weights(out) == weights(same)
    # where one is known, it does not depend on what else is on the disk
    folder = pruned()
    shutil.rmtree(read_toml(folder / "run.toml")["model"])
    command = ["recover", folder, "--data", text_file, "--out", tmp_path / "out"]
    record = (folder / "run.toml").read_text()
    named = read_toml(folder / "run.toml")["model"]
    for gone in ("models/gone", "gone", "../gone"):  # the first may be a name on the hub
        (folder / "run.toml").write_text(record.replace(named, gone))
        few = [*command, "--recipe", "groupwise"]
        assert_refused(*few, says=[f"{gone}, which run.toml names", "or --loss next-token"])
    for more in ([], ["--loss", "kl"]):
        few = [*command, "--recipe", "groupwise", *more]
        assert_refused(*few, says=["--teacher MODEL, or --loss next-token"])
    assert_refused(*command, "--loss", "next-token", says=["--recipe distil learns from"])
    recovered(folder, text_file, tmp_path / "out", recipe="groupwise", group=16, loss="next-token")


def test_another_recipe_than_the_one_recorded_has_its_own_loss(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    lora, distil = tmp_path / "lora", tmp_path / "distil"
    recovered(folder, text_file, lora, recipe="lora")
    recovered(folder, text_file, distil)
    for record, other in ((lora, distil), (distil, lora)):
        out = tmp_path / f"{other.name}-again"
        command = ["recover", "--config", str(record / "recovery.toml"), "--recipe", other.name]
        assert run([*command, "--out", str(out)]) == 0
        assert weights(out) == weights(other)


def test_a_teacher_that_nothing_is_learned_from_is_not_opened(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    plain = recovered(folder, text_file, tmp_path / "plain", recipe="lora")
    idle = recovered(folder, text_file, tmp_path / "idle", recipe="lora", teacher="nowhere")
    assert weights(plain.out) == weights(idle.out)
    assert any(note.startswith("--teacher changes nothing") for note in idle.notes)


def test_the_dense_model_is_the_one_that_the_opened_folder_names(pruned: Any) -> None:
    folder = pruned()
    config = make_recover_config(model="owner/name", recipe="groupwise")  # cached from the hub
    found = with_target(config, folder)
    assert (found.teacher, found.loss) == (read_toml(folder / "run.toml")["model"], "kl")
    with telling() as told:
        assert with_target(config, None).loss == "next-token"
    assert len(told.notes) == 1
    for asked in ({"recipe": "groupwise", "loss": "kl"}, {"recipe": "distil"}):  # never in silence
        with pytest.raises(SecateurError, match="names none"):
            with_target(make_recover_config(model="x", **asked), None)


def test_a_teacher_is_idle_where_it_neither_teaches_nor_writes() -> None:
    for settings, idle in (
        ({"recipe": "lora"}, True),
        ({"recipe": "lora", "data": "self"}, False),
        ({"recipe": "lora", "loss": "kl"}, False),
        ({"recipe": "groupwise", "loss": "next-token"}, True),
    ):
        config = make_recover_config(model="x", teacher="dense", **settings)
        noted = [note for note in idle_recovery_settings(config) if note.startswith("--teacher")]
        assert bool(noted) == idle


@pytest.mark.parametrize("shard", [True, False])
def test_shards_of_one_process_are_told(shard: bool, pruned: Any, text_file: Path) -> None:
    settings = {"model": str(pruned()), "data": str(text_file), "shard": shard}
    with telling() as told:
        student = open_student(make_recover_config(**settings))
    assert any("--shard changes nothing" in note for note in told.notes) == shard
    assert not student.divided


def test_the_adapter_alone_can_be_kept(
    pruned: Any, text_file: Path, tmp_path: Path, tokens: Tensor
) -> None:
    from peft import PeftModel

    folder, out = pruned(), tmp_path / "better"
    recovered(folder, text_file, out, recipe="lora", keep_adapter=True, rate=0.01)
    merged = logits(secateur.load(out), tokens)
    adapted = PeftModel.from_pretrained(secateur.load(folder), str(out / "adapter"))
    assert torch.allclose(logits(adapted, tokens), merged, atol=1e-4)
    assert not torch.allclose(merged, logits(secateur.load(folder), tokens), atol=1e-4)


def test_pruning_and_recovering_in_one_command(
    model: Path, calibrated: list[str], tmp_path: Path, capsys: Any, assert_refused: Any
) -> None:
    out = tmp_path / "better"
    command = ["prune", model, *calibrated, "--ratio", "0.3"]
    arguments = [*command, "--recover", "distil", "--out", out, "--json"]
    assert run([str(part) for part in arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recovery"]["results"]["trained"] == "consumers"
    assert {"run.toml", "recovery.toml", "plan.json"} <= files(out).keys()
    assert found["out"] == str(out)
    assert [p.name for p in out.iterdir() if p.is_dir()] == []
    again = tmp_path / "again"
    assert_refused(*command, "--recover", "own", "--out", again, says=["no recovery of its own"])
    assert_refused(*command, "--recover", "distill", "--out", again, says=["Did you mean 'distil'"])
    assert_refused(*command, "--recover", "distil", "--out", out, says=["exists", "--force"])
    for several in ("groupwise,distil", "distil,distil"):
        says = ["each recovery once", "--recover distil,groupwise"]
        assert_refused(*command, "--recover", several, "--out", again, says=says)
    assert_refused(*command, "--recover", "distil,own", "--out", again, says=["own is a recovery"])


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distillation takes a moment where nothing says for how long."""
    monkeypatch.setitem(LOSSES, "kl", replace(LOSSES["kl"], steps=12, batch=4))


@pytest.mark.usefixtures("few_steps")
def test_several_recoveries_are_as_one_after_the_other(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    short = {"calibration": str(text_file), "length": 16, "samples": 40, "evaluate": "none"}
    prune = {**short, "method": "flap", "ratio": 0.3}
    small, better = tmp_path / "small", tmp_path / "better"
    secateur.prune(model, out=small, **prune)
    train = {"data": str(text_file), "length": 16, "evaluate": "none", "teacher": str(model)}
    secateur.recover(small, out=better, **train)
    one_by_one = secateur.recover(better, out=tmp_path / "tiny", recipe="groupwise", **train)
    _, at_once = secateur.prune_and_recover(
        model, out=tmp_path / "chain", recipe="distil,groupwise", **prune
    )
    name = "model.safetensors"
    assert (at_once.out / name).read_bytes() == (one_by_one.out / name).read_bytes()
    (earlier,) = at_once.numbers["earlier"]
    assert earlier["recipe"] == "distil"
    report = read_json(at_once.out / "report.json")["recovery"]
    assert [one["recipe"] for one in (*report["earlier"], report)] == ["distil", "groupwise"]
    assert "Trainings before this one" in (at_once.out / "report.html").read_text()
    assert read_toml(at_once.out / "recovery.toml")["model"].endswith("was pruned, then distil")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


class CutIn(Cut):
    """Breaks off after some steps of a training that others come before."""

    def __init__(self, which: int) -> None:
        super().__init__(10)
        self.left = which

    def track(self, items: Any, stage: str, total: int, unit: str) -> Iterator[Any]:
        if stage == "training" and self.left:
            self.left -= 1
            return Quiet.track(self, items, stage, total, unit)
        return super().track(items, stage, total, unit)


@pytest.mark.usefixtures("few_steps")
def test_several_recoveries_go_on_where_they_were(
    model: Path, text_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    command = [
        *("prune", str(model), "--method", "flap", "--ratio", "0.3", "--calibration"),
        *(str(text_file), "--length", "16", "--samples", "40", "--evaluate", "none"),
        *("--recover", "distil,groupwise", "--out"),
    ]
    assert run([*command, str(tmp_path / "expected")]) == 0
    out = tmp_path / "chain"
    for which in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr("secateur.cli.pruning.Screen", lambda which=which: CutIn(which))
            assert run([*command, str(out)]) == 130
        assert len([*tmp_path.glob(".chain.training*.safetensors")]) == which + 1
        assert not out.exists()
    assert run([*command, str(out)]) == 0
    assert files(out) == files(tmp_path / "expected")


def test_an_interrupt_says_that_the_training_can_go_on(
    pruned: Any, text_file: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    folder, out, expected = pruned(), tmp_path / "better", tmp_path / "expected"
    options = ["--data", str(text_file), "--steps", "30", "--length", "16", "--samples", "40"]
    command = ["recover", str(folder), *options, "--evaluate", "none"]
    assert run([*command, "--out", str(expected)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("secateur.cli.recover.Screen", lambda: Cut(26))
        assert run([*command, "--out", str(out)]) == 130
    printed, said = capsys.readouterr()
    assert "A custom checkpoint, SecateurLlamaForCausalLM: layers differ" in printed
    assert "Interrupted; the training so far is in .better.training.safetensors" in said
    assert not out.exists()
    assert run([*command, "--out", str(out)]) == 0
    assert "going on after step 25" in capsys.readouterr().err
    assert files(out) == files(expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--recipe", "distill"], ["'distill'", "Did you mean 'distil'"]),
        (["--recipe", "lora", "--train", "all"], ["--recipe lora trains lora", "--recipe distil"]),
        (["--recipe", "distil", "--keep-adapter"], ["--keep-adapter", "--recipe lora"]),
        (["--length", "65"], ["--length 65", "context of the model, 64"]),
        (["--bits", "1"], ["bits", "greater than or equal to 2"]),
        (["--grid", "min-mex"], ["Did you mean 'min-max'"]),
        (["--rate", "0"], ["rate", "greater than 0"]),
        (["--dtype", "float16"], ["dtype", "float16"]),
        (["--teacher", "nowhere"], ["There is no folder nowhere"]),
        (["--data", "nothing.txt"], ["No such text: nothing.txt"]),
        (["--samples", "1"], ["samples", "greater than or equal to 2"]),
        (["--recipe", "lora", "--alpha", "inf"], ["alpha", "finite"]),
        (["--data", "none/alpaca.json"], ["No such text: none/alpaca.json"]),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(
    options: list[str],
    says: list[str],
    pruned: Any,
    text_file: Path,
    tmp_path: Path,
    assert_refused: Any,
) -> None:
    command = ["recover", pruned(), "--data", text_file, "--out", tmp_path / "better"]
    assert_refused(*command, *options, says=says)


def test_what_is_missing_is_told(
    pruned: Any, tiny_folder: Any, text_file: Path, tmp_path: Path, assert_refused: Any
) -> None:
    folder, out = pruned(), tmp_path / "better"
    assert_refused("recover", folder, "--out", out, says=["--data"])
    assert_refused("recover", "--data", text_file, "--out", out, says=["No model given", "recover"])
    dense = tiny_folder()
    assert_refused("recover", dense, "--data", text_file, "--out", out, says=["--teacher MODEL"])
    other = tiny_folder("llama-mha", vocab_size=140)
    command = ["recover", folder, "--data", text_file, "--out", out]
    assert_refused(*command, "--teacher", other, says=["do not share a vocabulary"])
    convs = pruned("gpt2")
    command = ["recover", convs, "--data", text_file, "--out", out, "--recipe", "groupwise"]
    assert_refused(*command, "--length", "16", says=["Conv1D", "--recipe lora"])


def test_nothing_that_is_read_is_written_over(
    pruned: Any, tiny_folder: Any, text_file: Path, tmp_path: Path, assert_refused: Any
) -> None:
    folder, dense = pruned(), tiny_folder()
    command = ["recover", folder, "--data", text_file, "--force"]
    assert_refused(*command, "--out", folder, says=["holds the model that is read"])
    named = [*command, "--teacher", dense, "--out", dense]
    assert_refused(*named, says=["holds the model that is read"])
    (taught,) = {read_toml(folder / "run.toml")["model"]}
    assert_refused(*command, "--out", taught, says=["holds the model that is read"])
    writes = ["recover", folder, "--data", "self", "--recipe", "lora", "--teacher", dense]
    assert_refused(*writes, "--out", dense, "--force", says=["that is read"])
    text = dense / "text.txt"
    text.write_bytes(text_file.read_bytes())
    inside = ["recover", folder, "--data", text, "--out", dense, "--force"]
    assert_refused(*inside, says=["text.txt that is read"])


def test_a_file_of_settings_has_settings_alone(tmp_path: Path, assert_refused: Any) -> None:
    record = tmp_path / "own.toml"
    for name in ("force", "out", "keep_adapter", "progress", "nonsense"):
        record.write_text(f"[settings]\nmodel = 'small'\n{name} = true\n")
        for command in ("recover", "prune"):
            given = [command, "--config", record, "--out", tmp_path / "out"]
            assert_refused(*given, says=[rf"setting.*{name}"])


def test_a_teacher_with_a_shorter_context_is_told(
    pruned: Any, tiny_folder: Any, text_file: Path, tmp_path: Path, assert_refused: Any
) -> None:
    short = tiny_folder(max_position_embeddings=16)
    command = ["recover", pruned(), "--data", text_file, "--out", tmp_path / "better"]
    given = [*command, "--teacher", short, "--length", "32"]
    assert_refused(*given, says=["reads 16 tokens at once", "--length 16"])


def test_text_that_is_too_short_to_train_on_is_told_before_the_cut(
    tiny_folder: Any, tmp_path: Path, assert_refused: Any, monkeypatch: Any
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2)
    called: list[Any] = []
    monkeypatch.setattr("secateur.pipeline.chain.prune", lambda *_, **__: called.append(1))
    command = ["prune", tiny_folder(), "--calibration", text, "--length", "60"]
    given = [*command, "--recover", "distil", "--out", tmp_path / "small"]
    assert_refused(*given, says=["gives one example"])
    assert not called


def test_an_adapted_checkpoint_keeps_a_tokenizer_that_loads(
    baichuan: Any, text_file: Path, tmp_path: Path
) -> None:
    _, packed = baichuan()
    out = tmp_path / "better"
    recovered(packed, text_file, out, recipe="lora")
    assert read_json(out / "config.json")["model_type"] == "llama"
    assert all(math.isfinite(one.value) for one in secateur.evaluate(out, str(text_file)))


def test_the_adapter_is_written_in_one_order(pruned: Any, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "better"
    recovered(pruned(), text_file, out, recipe="lora", keep_adapter=True)
    adapted = read_json(out / "adapter" / "adapter_config.json")["target_modules"]
    assert adapted == sorted(adapted)
    assert len(adapted) == 7


def test_a_card_speaks_of_perplexity_where_there_is_one(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    for evaluate, there in (("none", False), ("spare", True)):
        out = tmp_path / evaluate
        recovered(folder, text_file, out, evaluate=evaluate)
        added = (out / "README.md").read_text().split("## Recovery")[1]
        assert ("Perplexity on" in added) == there


def test_perplexity_on_what_was_trained_on_is_noted_for_files_alone(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    one = recovered(folder, text_file, tmp_path / "one", evaluate=str(text_file))
    settings = {**QUICK, "data": "embedded", "evaluate": "embedded"}
    other = secateur.recover(folder, out=tmp_path / "other", **settings)
    noted = [any("which is trained on" in note for note in run.notes) for run in (one, other)]
    assert noted == [True, False]


def test_a_model_writes_some_hundred_examples_of_its_own(pruned: Any, monkeypatch: Any) -> None:
    asked: list[int] = []

    def windows(documents: Any, tokenizer: Any, **options: Any) -> Any:
        asked.append(options["samples"])
        raise SecateurError("enough seen")

    opened = open_model(pruned())
    monkeypatch.setattr("secateur.data.sample_windows", windows)
    for given in ({}, {"samples": 90}):
        config = make_recover_config(model="x", recipe="lora", data="self", device="cpu", **given)
        with pytest.raises(SecateurError, match="enough seen"):
            read_data(opened, config)
    assert asked == [512, 90]


def test_layers_that_run_again_change_no_weight(
    pruned: Any, text_file: Path, tmp_path: Path, assert_refused: Any
) -> None:
    folder = pruned()
    found = []
    for recompute in ("auto", "always"):
        out = tmp_path / recompute
        recovered(folder, text_file, out, recipe="lora", recompute=recompute, evaluate="none")
        found.append(weights(out))
        assert read_toml(out / "recovery.toml")["recompute"] == recompute
    assert found[0] == found[1]
    command = ["recover", folder, "--data", text_file, "--out", tmp_path / "out"]
    assert_refused(*command, "--recompute", "alway", says=["'alway'", "Did you mean 'always'"])


def test_a_training_that_gains_nothing_says_so(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    said = []
    for rate in (1e6, 0.1):
        done = recovered(folder, text_file, tmp_path / str(rate), rate=rate, patience=99)
        said.append(any("nothing was gained" in note for note in done.notes))
        assert (done.numbers["best_step"] == 0) == said[-1]
    assert said == [True, False]


def test_a_disk_that_has_no_room_for_the_state_does_not_end_the_training(
    pruned: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder, out, expected = pruned(), tmp_path / "better", tmp_path / "expected"
    recovered(folder, text_file, expected, evaluate="none")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("secateur.recovery.state.header", full)
    options = [part for name, value in QUICK.items() for part in (f"--{name}", str(value))]
    command = ["recover", str(folder), "--data", str(text_file), "--evaluate", "none", *options]
    assert run([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert said.count("Cannot keep the state of training") == 1
    assert "No space left on device. Training goes on; cut short, it begins anew." in said
    assert weights(out) == weights(expected)
    assert {path.name for path in tmp_path.glob(".better*")} == set()


@pytest.mark.parametrize("kind", ["now", "best", "exp_avg"])
def test_a_state_that_is_not_finite_gives_no_model_that_is_not(
    kind: str, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder, out = pruned(), tmp_path / "out"
    settings = {"steps": 30, "batch": 2, "samples": 20, "evaluate": "none"}
    with pytest.raises(KeyboardInterrupt):
        recovered(folder, text_file, out, progress=Cut(26), **settings)  # saved between two checks
    state = tmp_path / ".out.training.safetensors"
    (best,) = tmp_path.glob(".out.training.safetensors.best-*")
    for file in (state, best):
        with safe_open(file, framework="pt") as opened:
            about = dict(opened.metadata())
        nan = {
            name: torch.full_like(tensor, math.nan) if name.startswith(kind) else tensor
            for name, tensor in load_file(file).items()
        }
        damaged = any(tensor.isnan().any() for tensor in nan.values())
        assert damaged == ((file == best) == (kind == "best"))
        values = json.loads(about["values"])
        if file == state:
            values["best_loss"] = 0.0  # nothing that comes is better
        save_file(nan, file, metadata={**about, "values": json.dumps(values)})
    if kind == "best":
        with pytest.raises(SecateurError, match="or damaged"):
            recovered(folder, text_file, out, **settings)
        return
    recovered(folder, text_file, out, **settings)
    held = load_file(out / "model.safetensors").values()
    assert all(tensor.isfinite().all() for tensor in held)


def test_a_dense_model_of_the_hub_is_asked_for_with_a_word(tmp_path: Path) -> None:
    """Whoever wrote the record named it."""
    config = make_recover_config(model="x", recipe="distil")
    for named, asked in (("owner/of-the-hub", True), (str(tmp_path), False), ("./gone", False)):
        (tmp_path / "run.toml").write_text(f"[settings]\nmodel = {json.dumps(named)}\n")
        with telling() as told:
            assert with_target(config, tmp_path).teacher == named
        said = [f"{named}, which run.toml names, is asked for" in note for note in told.notes]
        assert said == [True] * asked


def test_a_vocabulary_with_rows_to_spare_is_no_fault(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    """Qwen's have more embeddings than their tokenizers have tokens."""
    folder, small = tiny_folder(vocab_size=192), tmp_path / "small"
    secateur.prune(
        folder, out=small, calibration=str(text_file), samples=4, length=16, align=1, ratio=0.3
    )
    done = recovered(small, text_file, tmp_path / "better", steps=1, recipe="lora")
    assert done.load().lm_head.weight.shape[0] == 192


def test_another_arithmetic_is_another_training(
    pruned: Any, text_file: Path, monkeypatch: Any
) -> None:
    """Where it is chosen by the device, the settings are the same."""
    config = make_recover_config(model=str(pruned()), data=str(text_file), **QUICK)
    student = open_student(config)
    data = read_data(student.opened, student.config)
    one, again = (fingerprint(student, data) for _ in range(2))
    with monkeypatch.context() as elsewhere:  # the teacher's
        elsewhere.setattr(training, "computing_dtype", lambda *_: torch.bfloat16)
        assert one == again != fingerprint(student, data)
    monkeypatch.setattr(Student, "autocast", torch.bfloat16)
    assert one != fingerprint(student, data)


@pytest.mark.parametrize(
    ("capabilities", "dtype", "asked", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16, "auto", torch.bfloat16),
        ({"amx_bf16": True}, torch.float16, "auto", torch.bfloat16),
        ({"bf16": True, "neon": True}, torch.bfloat16, "auto", None),
        ({"amx_bf16": True}, torch.float32, "auto", None),
        ({"avx512_bf16": False, "avx2": True}, torch.bfloat16, "auto", None),
        ({}, torch.bfloat16, "bfloat16", torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16, "float32", None),
    ],
)
def test_a_training_is_in_bf16_where_the_cpu_has_it(
    capabilities: dict[str, bool], dtype: torch.dtype, asked: str, expected: torch.dtype | None,
    pruned: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And the checkpoint is in half precision, unless another dtype is asked for."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(OpenModel, "dtype", dtype)
    config = make_recover_config(model=str(pruned()), data=str(text_file), dtype=asked, **QUICK)
    assert open_student(config).autocast is expected
    on_gpu = open_student(config).under(device="cuda").autocast
    assert on_gpu is (None if asked == "float32" else torch.bfloat16)
    if asked == "auto":  # a torch that does not say what its CPU can do
        monkeypatch.delattr(torch.cpu, "get_capabilities")
        assert open_student(config).autocast is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"steps": 20}, True), ({"steps": 10}, False), ({"steps": None, "epochs": 3}, False)],
)
def test_text_that_comes_again_is_told(
    settings: dict[str, Any], told: bool, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    """Unless that is what was asked for: 20 steps of 4 go 2.2 times over 36 examples."""
    done = recovered(pruned(), text_file, tmp_path / "out", **settings)
    assert done.numbers["data"]["examples"] == 36
    again = "each of 36 examples comes 2.2 times: more text would serve better"
    assert (again in done.notes) is told
    assert any("more text" in note for note in done.notes) is told


def test_the_state_of_a_training_is_no_weight_of_the_model(pruned: Any) -> None:
    folder = pruned()
    before = bytes_before(open_model(folder))
    (folder / ".better.training.safetensors").write_bytes(b"x" * 1000)
    assert (
        bytes_before(open_model(folder)) == before == (folder / "model.safetensors").stat().st_size
    )


def test_the_schedule_follows_the_recipe_and_the_data() -> None:
    lora = make_recover_config(model="x", recipe="lora").schedule(6400)
    assert (lora.steps, lora.batch, lora.rate, lora.warmup) == (200, 64, 1e-4, 20)
    distil = make_recover_config(model="x").schedule(6400)
    assert (distil.steps, distil.batch, distil.relative) == (800, 4, True)
    adapters = make_recover_config(model="x", train="lora").schedule(6400)
    assert (adapters.rate, adapters.relative) == (1e-4, False)
    assert adapters == make_recover_config(model="x", recipe="lora", loss="kl").schedule(6400)
    few = make_recover_config(model="x", recipe="groupwise", loss="next-token").schedule(6400)
    assert (few.steps, few.batch, few.rate, few.warmup) == (200, 64, 1e-3, 20)
    assert make_recover_config(model="x", epochs=3).schedule(160).steps == 120
    assert make_recover_config(model="x", batch=99).schedule(7).batch == 7


def test_the_model_that_was_read_stays_as_it_was(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    before = copy.deepcopy(files(folder))
    recovered(folder, text_file, tmp_path / "better")
    assert files(folder) == before


def test_another_teacher_is_another_training(
    pruned: Any, tiny_folder: Any, text_file: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    folder, out = pruned(), tmp_path / "better"
    options = ["--data", str(text_file), "--steps", "30", "--length", "16", "--samples", "40"]
    command = ["recover", str(folder), *options, "--evaluate", "none", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr("secateur.cli.recover.Screen", lambda: Cut(26))
        assert run(command) == 130
    other = tiny_folder(seed=7)
    assert run([*command, "--teacher", str(other)]) == 2
    assert "other settings, data or weights" in capsys.readouterr().err


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_weights_that_changed_in_any_row_are_another_training(
    whose: str,
    pruned: Any,
    tiny_folder: Any,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    """What was trained for others goes with no weights but those."""
    folder, dense = pruned(), tiny_folder("llama-mha")
    options = ["--data", str(text_file), "--steps", "30", "--length", "16", "--samples", "40"]
    command = ["recover", str(folder), *options, "--evaluate", "none", "--teacher", str(dense)]
    command += ["--out", str(tmp_path / "better")]
    with monkeypatch.context() as patch:
        patch.setattr("secateur.cli.recover.Screen", lambda: Cut(26))
        assert run(command) == 130
    file = (folder if whose == "student" else dense) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj.weight"][1:] *= -1
    save_file(tensors, file, metadata={"format": "pt"})
    assert run(command) == 2
    assert "other settings, data or weights" in capsys.readouterr().err


def test_a_teacher_that_is_not_the_model_that_was_pruned_is_noted(
    pruned: Any, tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    same = recovered(folder, text_file, tmp_path / "same")
    other = tiny_folder(seed=7)
    named = recovered(folder, text_file, tmp_path / "named", teacher=str(other))
    dense = Path(str(same.config.teacher))
    shutil.rmtree(dense)
    other.rename(dense)
    found = recovered(folder, text_file, tmp_path / "other")
    noted = [any("other weights" in note for note in done.notes) for done in (same, named, found)]
    assert noted == [False, False, True]


def test_of_a_folder_pruned_twice_it_is_said_who_teaches(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    once = pruned()
    again = {"method": "magnitude", "ratio": 0.2, "align": 1, "evaluate": "none"}
    secateur.prune(once, out=tmp_path / "twice", **again)
    for folder, noted in ((once, False), (tmp_path / "twice", True)):
        done = recovered(folder, text_file, tmp_path / f"better-{noted}")
        assert any("was itself pruned" in note for note in done.notes) == noted
    card = (tmp_path / "better-True" / "README.md").read_text()
    assert "| recipe | distil |" in card
    assert not any(f"| {idle} |" in card for idle in ("bits", "rank", "dropout", "dequantise"))


def test_consumers_of_experts_are_trained_and_nothing_else_of_them(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder, out = pruned("mixtral", search="AL-AM", repair="none"), tmp_path / "better"
    recovered(folder, text_file, out, rate=0.01)
    one, two = (open_model(f).weights for f in (folder, out))
    changed = {n for n in one.specs if not torch.equal(one.tensor(n), two.tensor(n))}
    assert changed
    assert all("o_proj" in name or "down_proj" in name for name in changed)


def test_a_packed_folder_is_discovered_as_what_it_stands_for(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder, out = pruned(), tmp_path / "tiny"
    recovered(folder, text_file, out, recipe="groupwise", group=16, bits=3)
    config, whole = open_config(out), open_model(out)
    assert config.structures.axes == whole.structures.axes
    name = next(n for n in whole.weights.specs if n.endswith("q_proj.weight"))
    assert torch.equal(whole.weights.head(name), whole.weights.tensor(name)[:1])
    assert "trust_remote_code" in (out / "README.md").read_text()


def test_settings_that_a_recovery_does_not_look_at_are_noted(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    done = recovered(pruned(), text_file, tmp_path / "a", bits=3, rank=4)
    for option in ("--bits", "--rank"):
        assert any(note.startswith(option) for note in done.notes)
