"""Recovery: merged equals unmerged, training can be cut short and goes on, the folder is whole."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import secateur
from conftest import tiny_model, tiny_tokenizer
from secateur.cli.main import run
from secateur.config import RECIPES, make_recover_config
from secateur.data import IGNORED, Examples, instruction_examples, is_instructions
from secateur.errors import SecateurError
from secateur.models import open_config, open_model
from secateur.pipeline.training_data import read_data
from secateur.progress import Quiet
from secateur.recovery import (
    CachedDistillation,
    FullDistillation,
    Groupwise,
    Lora,
    Plain,
    Schedule,
    Trainer,
    forget_other,
    next_token,
)
from secateur.recovery.weights import relative_rate
from secateur.stats import Walk

FAMILIES = ["llama-gqa", "qwen2-gqa", "mistral-gqa", "gemma2", "phi", "opt"]
QUICK = {"steps": 4, "batch": 4, "micro": 2, "length": 16, "samples": 40}


@pytest.fixture
def pruned(tiny_folder: Any, text_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """A folder whose layers have different widths."""

    def make(variant: str = "llama-gqa", **settings: Any) -> Path:
        out = tmp_path / f"pruned-{variant}"
        given = {"ratio": 0.3, "align": 1, "samples": 6, "length": 16, "evaluate": "none"}
        folder = tiny_folder(variant)
        secateur.prune(folder, calibration=str(text_file), out=out, **{**given, **settings})
        return out

    return make


def linears(opened: Any) -> list[str]:
    axes = opened.structure.axes
    return list(dict.fromkeys(m.module for a in axes for m in a.members if m.parameter == "weight"))


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


def with_tensors(opened: Any, tensors: dict[str, Tensor]) -> Any:
    """The model with `tensors` in place of its own."""
    model = opened.whole(torch.float32)
    missing = model.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    return model


@pytest.mark.parametrize("variant", [*FAMILIES, "gpt2", "bloom"])
def test_merged_lora_equals_unmerged_on_layers_of_different_widths(
    variant: str, pruned: Any, tokens: Tensor
) -> None:
    opened = open_model(pruned(variant))
    model = opened.whole(torch.float32)
    dense = logits(model, tokens)
    lora = Lora(model, linears(opened), rank=3, alpha=6.0, dropout=0.1, seed=0)
    assert torch.equal(logits(model, tokens), dense)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in lora.parameters.items():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    changed = logits(model.eval(), tokens)
    assert not torch.allclose(changed, dense, atol=1e-3)
    merged = with_tensors(opened, lora.tensors(opened.weights))
    assert torch.allclose(logits(merged, tokens), changed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", FAMILIES)
def test_merged_few_bits_equal_unmerged_on_layers_of_different_widths(
    variant: str, pruned: Any, tokens: Tensor
) -> None:
    opened = open_model(pruned(variant))
    model = opened.whole(torch.float32)
    settings: dict[str, Any] = {"bits": 4, "group": 8, "grid": "min-max", "rank": 3, "alpha": 6.0}
    few = Groupwise(model, linears(opened), seed=0, **settings)
    generator = torch.Generator().manual_seed(1)
    codes = {path: model.get_submodule(path).codes.clone() for path in linears(opened)}
    for name, parameter in few.parameters.items():
        if name.endswith("lora_b"):
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    changed = logits(model, tokens)
    exact = {
        f"{path}.weight": model.get_submodule(path).quantised(merged=True).weight
        for path in linears(opened)
    }
    merged = logits(with_tensors(opened, exact), tokens)
    assert torch.allclose(merged, changed, rtol=1e-5, atol=1e-5)
    stored = few.packed()
    assert all(torch.equal(stored[path].codes, codes[path]) for path in codes)
    # zero points are stored in half precision
    small = logits(with_tensors(opened, few.tensors()), tokens)
    assert torch.allclose(small, changed, rtol=0, atol=0.02 * float(changed.abs().max()))


# --- objectives ---


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(tokens: Tensor) -> None:
    model = tiny_model()
    given = logits(model, tokens)
    rows = torch.arange(len(tokens))
    full = FullDistillation(model)
    assert float(full(given, tokens, rows, tokens)) == pytest.approx(0.0, abs=1e-3)
    walk = Walk(open_model(model).streamed(device="cpu"), tokens, batch=4)
    cached = CachedDistillation(walk, 20)
    assert float(cached(given, tokens, rows, tokens)) == pytest.approx(0.0, abs=1e-2)


@pytest.mark.parametrize("limit", [2**30, 0])
def test_the_cached_teacher_says_what_the_live_one_says(limit: int, tokens: Tensor) -> None:
    """With all tokens but one listed they agree; with fewer, less is told (log-sum inequality)."""
    teacher, student = tiny_model(), tiny_model(seed=1)
    rows = torch.arange(len(tokens))
    given = logits(student, tokens)
    labels = tokens.clone()
    labels[:, :5] = IGNORED
    labels[2, 9:] = IGNORED
    exact = float(FullDistillation(teacher)(given, labels, rows, tokens))
    source = open_model(teacher).streamed(device="cpu")
    told = []
    for top in (4, 32, 127):
        cached = CachedDistillation(Walk(source, tokens, batch=4, limit=limit), top)
        told.append(float(cached(given, labels, rows, tokens)))
    assert told[0] < told[1] < told[2] + 1e-3
    assert told[2] == pytest.approx(exact, rel=2e-3)
    # a part of the rows, cut shorter, is the same part of the sum
    part = torch.tensor([2])
    cut = float(cached(given[part, :9], labels[part, :9], part, tokens[part, :9]))
    own = float(FullDistillation(teacher)(given[part], labels[part], part, tokens[part]))
    assert cut == pytest.approx(own, rel=2e-3)


def test_the_loss_on_the_next_token_is_the_models_own(tokens: Tensor) -> None:
    model = tiny_model()
    labels = tokens.clone()
    labels[:, :7] = IGNORED
    with torch.no_grad():
        expected = model(tokens, labels=labels).loss
    count = Examples(tokens, labels).tokens
    ours = next_token(logits(model, tokens), labels, torch.arange(6), tokens) / count
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)


# --- the loop ---


def schedule(**changes: Any) -> Schedule:
    given = {
        "steps": 12, "batch": 5, "micro": 2, "rate": 0.15, "relative": True, "warmup": 2, "seed": 3,
    }  # fmt: skip
    return Schedule(**{**given, **changes})


def trainer(objective: Any = next_token, progress: Any = None, **changes: Any) -> Any:
    model = tiny_model()
    ids = torch.randint(3, 128, (23, 16), generator=torch.Generator().manual_seed(2))
    ids[:, 8:] = ids[:, :8]  # something to learn
    consumers = {a.consumer.tensor for a in open_model(model).structure.axes}
    plain = Plain(model, sorted(consumers))
    options = {key: changes.pop(key) for key in ("store", "fingerprint") if key in changes}
    made = Trainer(
        model,
        plain.parameters,
        Examples.of_windows(ids),
        4,
        objective,
        schedule(**changes),
        device=torch.device("cpu"),
        progress=progress,
        **options,
    )
    return made, plain


def test_every_example_comes_once_before_any_comes_again() -> None:
    plan = schedule(batch=4)
    seen = torch.cat([plan.rows(step, 10) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) == sorted(seen[10:].tolist())
    assert seen[:10].tolist() != seen[10:].tolist()
    assert schedule(seed=4, batch=4).rows(0, 10).tolist() != plan.rows(0, 10).tolist()


def test_the_rate_rises_and_then_falls_to_nothing() -> None:
    plan = schedule(steps=10, warmup=4)
    factors = [plan.factor(step) for step in range(10)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_how_many_examples_go_at_once_does_not_matter() -> None:
    found = []
    for micro in (1, 2, 5):
        made, plain = trainer(micro=micro, steps=3)
        made.run()
        found.append(plain.tensors())
    for other in found[1:]:
        for name, tensor in found[0].items():
            assert torch.allclose(tensor, other[name], rtol=0, atol=1e-5)


def test_training_helps_trains_what_it_should_and_keeps_the_best() -> None:
    made, plain = trainer(steps=30)
    before = {name: p.detach().clone() for name, p in made._model.named_parameters()}
    outcome = made.run()
    assert outcome.checks[-1].held_out < outcome.checks[0].held_out
    best = min(outcome.checks, key=lambda check: check.held_out)
    assert outcome.best_step == best.step
    for name, parameter in made._model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in plain.parameters)
    made._check(99)
    assert made._outcome.checks[-1].held_out == pytest.approx(best.held_out, rel=1e-6)


def test_training_that_does_harm_gives_back_what_it_was_given() -> None:
    made, plain = trainer(rate=40.0, warmup=0, patience=2)
    before = {name: p.detach().clone() for name, p in plain.parameters.items()}
    outcome = made.run()
    assert outcome.best_step == 0
    assert outcome.stopped == "no better held-out loss in 2 checks"
    assert outcome.steps == 2
    assert all(torch.equal(p, before[name]) for name, p in plain.parameters.items())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_is_named_and_the_last_good_state_kept(where: str) -> None:
    calls = []

    def broken(given: Tensor, labels: Tensor, examples: Tensor, ids: Tensor) -> Tensor:
        value = next_token(given, labels, examples, ids)
        if given.requires_grad:
            calls.append(1)
        if len(calls) > 3 * 5:  # three pieces a step
            # the square root of nothing is finite, its gradient is not
            return value * torch.nan if where == "loss" else value + (0 * value).sqrt()
        return value

    made, plain = trainer(broken)
    outcome = made.run()
    assert outcome.stopped == f"the {where} of step 6 is NaN or infinite"
    assert outcome.steps == 5
    assert outcome.best_step == 5
    assert all(torch.isfinite(p).all() for p in plain.parameters.values())


class Cut(Quiet):
    """Breaks training off before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def track(self, items: Any, stage: str, total: int, unit: str) -> Iterator[Any]:
        for item in items:
            if stage == "training" and item == self.step:
                raise KeyboardInterrupt
            yield item


@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_a_training_cut_short_ends_with_the_same_weights(step: int, tmp_path: Path) -> None:
    whole, plain = trainer(seed=step)
    expected = whole.run()
    store = tmp_path / "state.safetensors"
    first, _ = trainer(seed=step, progress=Cut(step), store=store)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    again, other = trainer(seed=step, store=store)
    outcome = again.run()
    assert all(torch.equal(t, other.tensors()[name]) for name, t in plain.tensors().items())
    assert outcome.checks == expected.checks
    assert (outcome.steps, outcome.tokens) == (expected.steps, expected.tokens)


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "state.safetensors"
    trainer(steps=2, store=store, fingerprint="a")[0].run()
    with pytest.raises(SecateurError, match="other settings, data or weights"):
        trainer(steps=2, store=store, fingerprint="b")[0].run()
    forget_other(store, "a")
    assert store.exists()
    forget_other(store, "b")
    assert not store.exists()
    store.write_bytes(b"nothing")
    with pytest.raises(SecateurError, match="damaged"):
        trainer(steps=2, store=store, fingerprint="a")[0].run()


# --- data ---


def test_the_loss_is_on_the_response_alone(tmp_path: Path) -> None:
    path = tmp_path / "few.json"
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Say no.", "input": "", "output": "no, never"},
        {"instruction": "long " * 100, "output": "never reached"},
    ]
    path.write_text(json.dumps(rows))
    tokenizer = tiny_tokenizer()
    assert is_instructions(str(path))
    found = instruction_examples(str(path), tokenizer, length=90, samples=9, seed=0)
    told = {
        tokenizer.decode(ids[labels != IGNORED]).replace(" ", "")
        for ids, labels in zip(found.ids, found.labels, strict=True)
    }
    assert told == {"3</s>", "no,never</s>"}
    whole = instruction_examples(
        str(path), tokenizer, length=90, samples=9, seed=0, on_prompts=True
    )
    assert whole.tokens > found.tokens
    short = found[torch.tensor([0])]
    assert short.labels[0, -1] != IGNORED


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ('{"instruction": "a"}', "not a JSON list"),
        ('[{"instruction": "a"}]', "entry 1 is no instruction"),
        ('[{"instruction": "aaaaaaaaaaaaaaaaaaa", "output": "b"}]', "no example whose response"),
    ],
)
def test_bad_instructions_are_told(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "few.json"
    path.write_text(text)
    with pytest.raises(SecateurError, match=says):
        instruction_examples(str(path), tiny_tokenizer(), length=20, samples=9, seed=0)


# --- the whole way ---


def recovered(folder: Path, text: Path, out: Path, **settings: Any) -> Any:
    return secateur.recover(folder, data=str(text), out=out, **{**QUICK, **settings})


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


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
    measured = secateur.evaluate(out, str(text_file), windows=[16], tokens=400)
    assert all(math.isfinite(one.value) for one in measured)
    card = (out / "README.md").read_text()
    for words in ("## Recovery", "trained", done.numbers["data"]["sha256"][:16], "held out"):
        assert words in card
    assert done.numbers["checks"][0]["step"] == 0
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
    rounds = [secateur.evaluate(f, str(text_file), windows=[16], tokens=400) for f in (out, plain)]
    assert rounds[0] == rounds[1]
    # and it can be pruned again, or recovered again
    again = tmp_path / "again"
    secateur.prune(
        out, calibration=str(text_file), samples=4, length=16, out=again, evaluate="none"
    )
    assert torch.isfinite(logits(secateur.load(again), tokens)).all()


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
        sys.executable, "-m", "secateur", "recover", str(folder), "--with", recipe,
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
    said = capsys.readouterr().err
    assert "Interrupted; the training so far is in .better.training.safetensors" in said
    assert not out.exists()
    assert run([*command, "--out", str(out)]) == 0
    assert "going on after step 25" in capsys.readouterr().err
    assert files(out) == files(expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--with", "distill"], ["'distill'", "Did you mean 'distil'"]),
        (["--with", "lora", "--train", "all"], ["--with lora trains lora", "--with distil"]),
        (["--with", "distil", "--keep-adapter"], ["--keep-adapter", "--with lora"]),
        (["--length", "65"], ["--length 65", "context of the model, 64"]),
        (["--bits", "1"], ["bits", "greater than or equal to 2"]),
        (["--grid", "min-mex"], ["Did you mean 'min-max'"]),
        (["--rate", "0"], ["rate", "greater than 0"]),
        (["--dtype", "float16"], ["dtype", "float16"]),
        (["--teacher", "nowhere"], ["No such model folder: nowhere"]),
        (["--data", "nothing.txt"], ["No such text: nothing.txt"]),
        (["--samples", "1"], ["samples", "greater than or equal to 2"]),
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
    command = ["recover", convs, "--data", text_file, "--out", out, "--with", "groupwise"]
    assert_refused(*command, "--length", "16", says=["Conv1D", "--with lora"])


def test_the_schedule_follows_the_recipe_and_the_data() -> None:
    lora = make_recover_config(model="x", recipe="lora").schedule(6400)
    assert (lora.steps, lora.batch, lora.rate, lora.warmup) == (200, 64, 1e-4, 20)
    distil = make_recover_config(model="x").schedule(6400)
    assert (distil.steps, distil.batch, distil.relative) == (200, 16, True)
    adapters = make_recover_config(model="x", train="lora").schedule(6400)
    assert (adapters.rate, adapters.relative) == (1e-4, False)
    assert make_recover_config(model="x", epochs=3).schedule(160).steps == 30
    assert make_recover_config(model="x", batch=99).schedule(7).batch == 7


def test_the_model_that_was_read_stays_as_it_was(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    before = copy.deepcopy(files(folder))
    recovered(folder, text_file, tmp_path / "better")
    assert files(folder) == before


def test_the_relative_rate_follows_size_and_width() -> None:
    narrow = torch.full((4, 9), 2.0)
    assert relative_rate(narrow) == pytest.approx(2 / 6**0.5)
    assert relative_rate(0.1 * narrow) == pytest.approx(0.1 * relative_rate(narrow))
    assert relative_rate(narrow.repeat(4, 4)) == pytest.approx(relative_rate(narrow) / 2)
    assert relative_rate(torch.zeros(16)) == pytest.approx(1e-3 / 4)


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
    done = recovered(pruned(), text_file, tmp_path / "a", bits=3, rank=4, epochs=2)
    for option in ("--bits", "--rank", "--epochs"):
        assert any(note.startswith(option) for note in done.notes)


def test_a_models_own_dropout_is_no_part_of_a_recipe(pruned: Any) -> None:
    opened = open_model(pruned("gpt2"))
    model = opened.whole(torch.float32)
    lora = Lora(model, linears(opened), rank=2, alpha=4.0, dropout=0.5, seed=0)
    data = Examples.of_windows(torch.randint(3, 128, (9, 16)))
    made = Trainer(model, lora.parameters, data, 2, next_token, schedule(),
                   device=torch.device("cpu"))  # fmt: skip
    made._step(0)
    dropping = {n for n, m in model.named_modules() if m.training and "dropout" in n.lower()}
    assert dropping
    assert all("lora_dropout" in name for name in dropping)


def test_the_rest_of_a_cached_teacher_counts_as_one_more_token(tokens: Tensor) -> None:
    """KL over the listed tokens and all others together, from whole logits by hand."""
    teacher, student = tiny_model(), tiny_model(seed=1)
    top = 4
    cached = CachedDistillation(
        Walk(open_model(teacher).streamed(device="cpu"), tokens, batch=4), top
    )
    given = logits(student, tokens)
    theirs, ours = (x[:, :-1].flatten(0, 1).softmax(-1) for x in (logits(teacher, tokens), given))
    listed, index = theirs.topk(top)
    parts = [
        torch.cat([part, 1 - part.sum(dim=1, keepdim=True)], dim=1)
        for part in (listed, ours.gather(1, index))
    ]
    expected = float((parts[0] * (parts[0] / parts[1]).log()).sum())
    found = float(cached(given, tokens, torch.arange(len(tokens)), tokens))
    assert found == pytest.approx(expected, rel=1e-2)  # the cache holds half precision
    assert float((parts[0] * (parts[0] / parts[1]).log())[:, -1].sum().abs()) > 0.1 * expected


@pytest.mark.parametrize("kind", ["text", "instructions"])
def test_examples_keep_their_labels_whatever_their_order(
    kind: str, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    path = text_file
    if kind == "instructions":
        path = tmp_path / "some.json"
        rows = [{"instruction": f"Say {n}.", "output": f"{n} it is"} for n in range(20)]
        path.write_text(json.dumps(rows))
    config = make_recover_config(model="x", recipe="lora", data=str(path), length=64)
    data = read_data(open_model(pruned()), config, lambda message: None)
    told = data.examples.labels != IGNORED
    assert told.any(dim=1).all()
    assert torch.equal(data.examples.labels[told], data.examples.ids[told])
    assert 0 < data.held < len(data.examples)
