"""What a training step sees and makes smaller, and the loop: cut short, it goes on the same."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from short_training import schedule, trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import Cut, linears, logits, tiny_model, tiny_tokenizer
from secateur.checkpoint import Store
from secateur.config import make_recover_config
from secateur.data import IGNORED, Examples, instruction_examples, is_instructions
from secateur.errors import SecateurError
from secateur.models import open_model
from secateur.pipeline.training import _recomputes
from secateur.pipeline.training_data import read_data
from secateur.progress import telling
from secateur.recovery import (
    Batch,
    CachedDistillation,
    FullDistillation,
    Halves,
    Lora,
    Trainer,
    forget_other,
    next_token,
)
from secateur.recovery.plain_weights import relative_rate
from secateur.stats import Walk


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
    found = instruction_examples(str(path), tokenizer, length=260, samples=9, seed=0)
    told = {
        tokenizer.decode(ids[labels != IGNORED]).replace(" ", "")
        for ids, labels in zip(found.ids, found.labels, strict=True)
    }
    assert told == {"3</s>", "no,never</s>"}
    whole = instruction_examples(
        str(path), tokenizer, length=260, samples=9, seed=0, on_prompts=True
    )
    assert whole.tokens > found.tokens
    short = found[torch.tensor([0])]
    assert short.labels[0, -1] != IGNORED


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ('{"instruction": "a"}', "entry 1 is no instruction"),
        ('[{"instruction": "a"}]', "entry 1 is no instruction"),
        ('[{"instruction": "aaaaaaaaaaaaaaaaaaa", "output": "b"}]', "no example whose response"),
    ],
)
def test_bad_instructions_are_told(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "few.json"
    path.write_text(text)
    with pytest.raises(SecateurError, match=says):
        instruction_examples(str(path), tiny_tokenizer(), length=20, samples=9, seed=0)


@pytest.mark.parametrize("kind", ["text", "instructions"])
def test_examples_keep_their_labels_whatever_their_order(
    kind: str, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    path = text_file
    if kind == "instructions":
        path = tmp_path / "some.json"
        rows = [{"prompt": f"Say {n}.", "completion": f"{n} it is"} for n in range(20)]
        path.write_text(json.dumps(rows))
    config = make_recover_config(model="x", recipe="lora", data=str(path), length=64)
    data = read_data(open_model(pruned()), config)
    told = data.examples.labels != IGNORED
    assert told.any(dim=1).all()
    assert torch.equal(data.examples.labels[told], data.examples.ids[told])
    assert 0 < data.held < len(data.examples)


def told_by(objective: Any, given: Tensor, labels: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """The loss of whole logits [example, token, vocabulary], in one piece."""
    example, position = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    places, following = example * ids.shape[1] + position, labels[example, position + 1]
    batch = Batch(ids, places, following, rows[example], position)
    loss: Tensor = objective(batch)(given.flatten(0, 1)[places], slice(0, len(places)))
    return loss


@contextmanager
def counted_head(source: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """While entered, at how many places the head is asked, call by call."""
    places: list[int] = []
    back = source.back

    @contextmanager
    def counted() -> Iterator[Any]:
        with back() as logits_of:
            yield lambda hidden: (places.append(hidden[..., 0].numel()), logits_of(hidden))[1]

    with monkeypatch.context() as patched:
        patched.setattr(source, "back", counted)
        yield places


def everywhere(tokens: Tensor) -> Tensor:
    return torch.ones_like(tokens, dtype=torch.bool)


def live(teacher: Any) -> FullDistillation:
    ids = torch.arange(6).view(2, 3)
    return FullDistillation(Halves(teacher, ids, nullcontext))


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(tokens: Tensor) -> None:
    model = tiny_model()
    given = logits(model, tokens)
    rows = torch.arange(len(tokens))
    full = live(model)
    assert float(told_by(full, given, tokens, rows, tokens)) == pytest.approx(0.0, abs=1e-3)
    walk = Walk(open_model(model).streamed(device="cpu"), tokens, batch=4)
    cached = CachedDistillation(walk, 20, everywhere(tokens))
    assert float(told_by(cached, given, tokens, rows, tokens)) == pytest.approx(0.0, abs=1e-2)


@pytest.mark.parametrize("limit", [2**30, 0])
def test_the_cached_teacher_says_what_the_live_one_says(
    limit: int, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all tokens but one listed they agree; with fewer, less is told (log-sum inequality)."""
    monkeypatch.setattr("secateur.stats.blocks._VALUES", 5 * 128)
    teacher, student = tiny_model(), tiny_model(seed=1)
    rows = torch.arange(len(tokens))
    given = logits(student, tokens)
    labels = tokens.clone()
    labels[:, :5] = IGNORED
    labels[2, 9:] = IGNORED
    exact = float(told_by(live(teacher), given, labels, rows, tokens))
    source = open_model(teacher).streamed(device="cpu")
    told = []
    for top in (4, 32, 127):
        cached = CachedDistillation(
            Walk(source, tokens, batch=4, limit=limit), top, everywhere(tokens)
        )
        told.append(float(told_by(cached, given, labels, rows, tokens)))
    assert told[0] < told[1] < told[2] + 1e-3
    # one that was asked where there are labels alone says the same there, and is asked nowhere else
    wanted = labels != IGNORED
    with counted_head(source, monkeypatch) as places:
        asked = CachedDistillation(Walk(source, tokens, batch=4, limit=limit), 127, wanted)
    assert sum(places) == int(wanted[:, 1:].sum())
    for kept in (asked._tokens.tensor, asked._logs.tensor):
        kept[~wanted[:, 1:]] = 99
    assert float(told_by(asked, given, labels, rows, tokens)) == pytest.approx(told[2], rel=1e-6)
    assert told[2] == pytest.approx(exact, rel=2e-3)
    # a part of the rows, cut shorter, is the same part of the sum
    part = torch.tensor([2])
    cut = float(told_by(cached, given[part, :9], labels[part, :9], part, tokens[part, :9]))
    own = float(told_by(live(teacher), given[part], labels[part], part, tokens[part]))
    assert cut == pytest.approx(own, rel=2e-3)


def test_a_teacher_that_was_kept_is_not_taken_for_one_of_other_labels(
    tokens: Tensor, tmp_path: Path
) -> None:
    source = open_model(tiny_model()).streamed(device="cpu")
    halves = torch.arange(tokens.shape[1]) % 2 == 0
    first, other = halves.expand_as(tokens), ~halves.expand_as(tokens)

    def asked(told: Tensor, store: Store | None) -> CachedDistillation:
        return CachedDistillation(Walk(source, tokens, batch=4, store=store), 5, told)

    for told in (first, other):
        with Store(tmp_path / "store") as store:
            kept = asked(told, store)._tokens.tensor[told[:, 1:]].clone()
        assert torch.equal(kept, asked(told, None)._tokens.tensor[told[:, 1:]])


def test_the_rest_of_a_cached_teacher_counts_as_one_more_token(tokens: Tensor) -> None:
    """KL over the listed tokens and all others together, from whole logits by hand."""
    teacher, student = tiny_model(), tiny_model(seed=1)
    top = 4
    cached = CachedDistillation(
        Walk(open_model(teacher).streamed(device="cpu"), tokens, batch=4), top, everywhere(tokens)
    )
    given = logits(student, tokens)
    theirs, ours = (x[:, :-1].flatten(0, 1).softmax(-1) for x in (logits(teacher, tokens), given))
    listed, index = theirs.topk(top)
    parts = [
        torch.cat([part, 1 - part.sum(dim=1, keepdim=True)], dim=1)
        for part in (listed, ours.gather(1, index))
    ]
    expected = float((parts[0] * (parts[0] / parts[1]).log()).sum())
    found = float(told_by(cached, given, tokens, torch.arange(len(tokens)), tokens))
    assert found == pytest.approx(expected, rel=1e-2)  # the cache holds half precision
    assert float((parts[0] * (parts[0] / parts[1]).log())[:, -1].sum().abs()) > 0.1 * expected


def test_a_cached_teacher_takes_no_more_memory_than_it_may(tokens: Tensor) -> None:
    source = open_model(tiny_model()).streamed(device="cpu")
    whole = tokens.shape[0] * (tokens.shape[1] - 1) * 20 * 6  # bytes
    in_memory = []
    for limit in (whole // 3, whole // 2, whole - 1, whole, 2 * whole):
        cached = CachedDistillation(
            Walk(source, tokens, batch=4, limit=limit), 20, everywhere(tokens)
        )
        parts = [part for part in (cached._tokens, cached._logs) if not part.mapped]
        in_memory.append(sum(part.tensor.nbytes for part in parts))
        assert in_memory[-1] <= limit
    assert in_memory[-1] == whole


def test_the_loss_on_the_next_token_is_the_models_own(tokens: Tensor) -> None:
    model = tiny_model()
    labels = tokens.clone()
    labels[:, :7] = IGNORED
    with torch.no_grad():
        expected = model(tokens, labels=labels).loss
    count = Examples(tokens, labels).tokens
    ours = told_by(next_token, logits(model, tokens), labels, torch.arange(6), tokens) / count
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)


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


@pytest.mark.parametrize("uneven", [False, True])
def test_how_many_examples_go_at_once_does_not_matter(uneven: bool) -> None:
    """However many labels each has; one has none."""
    found = []
    for micro in (1, 2, 5, None):
        made, plain = trainer(micro=micro, steps=3)
        if uneven:
            labels = made._data.ids.clone()
            for row, told in enumerate(labels):
                told[: row % 8 * 2 + 2] = IGNORED
            made._data = Examples(made._data.ids, labels)
        made.run()
        found.append(plain.tensors())
    for other in found[1:]:
        for name, tensor in found[0].items():
            assert torch.allclose(tensor, other[name], rtol=0, atol=1e-5)


def test_what_layers_keep_is_told_for_as_much_as_goes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = {micro: trainer(micro=micro)[0].kept_bytes() for micro in (1, 4, None)}
    assert kept[4] == 4 * kept[1] > 0
    assert kept[None] == 5 * kept[1]  # a step has no more
    monkeypatch.setattr("secateur.recovery.trainer.TOKENS_AT_ONCE", 3 * 16)
    assert trainer(micro=None)[0].kept_bytes() == 3 * kept[1]

    def out_of_memory(*_: Any) -> int:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("secateur.recovery.trainer.kept_bytes", out_of_memory)
    made, _ = trainer(micro=1)
    made._dropouts = [torch.nn.Dropout().eval()]
    assert made.kept_bytes() == math.inf
    assert not made._dropouts[0].training


def test_layers_run_again_where_what_they_keep_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student: Any = SimpleNamespace(
        config=SimpleNamespace(recompute="auto"), device=torch.device("cuda"), divided=False
    )
    made, _ = trainer(micro=1)
    kept, to_come = made.kept_bytes(), 3 * sum(p.nbytes for p in made.parameters)
    for free, again in ((to_come + kept, True), (to_come + 2 * kept, False)):
        monkeypatch.setattr("secateur.pipeline.training.free_bytes", lambda _, free=free: free)
        assert _recomputes(student, made) is again


class Reads(TorchDispatchMode):
    """Counts what makes a device wait for its host."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in _READS
        return func(*args, **(kwargs or {}))


_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


def test_a_step_reads_no_more_of_the_device_the_more_micro_batches_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of labels, which are on the host, numbers are read all the same; layers do as they like."""
    counts = []
    for micro in (1, 5):
        made, _ = trainer(micro=micro)
        made.step(0)
        batches = list(made._batches(made._schedule.rows(1, made._train)))
        hidden = iter([made.halves.hidden(batch.ids) for batch in batches])
        with monkeypatch.context() as patch, Reads() as reads:
            patch.setattr(made.halves, "hidden", lambda _, hidden=hidden: next(hidden))
            patch.setattr(made, "_batches", lambda _, batches=batches: iter(batches))
            made.step(1)
        counts.append(reads.count)
    assert counts[0] == counts[1] == 3  # the labels of the step; sums are read by `tolist`


@pytest.mark.parametrize("relative", [True, False])
def test_what_is_trained_at_one_rate_is_updated_at_once(relative: bool) -> None:
    made, plain = trainer(relative=relative, rate=0.3)
    groups = made._optimizer.param_groups
    assert len(groups) == (len(plain.parameters) if relative else 1)
    made.step(0)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for parameter in plain.parameters.values():
        suits = relative_rate(parameter) if relative else 1.0
        assert rates[id(parameter)] == pytest.approx(0.5 * 0.3 * suits, rel=0.01)


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
    made, plain = trainer(rate=4e6, warmup=0, patience=2)
    before = {name: p.detach().clone() for name, p in plain.parameters.items()}
    outcome = made.run()
    assert outcome.best_step == 0
    assert outcome.stopped == "no better held-out loss in 2 checks"
    assert outcome.steps == 2
    assert all(torch.equal(p, before[name]) for name, p in plain.parameters.items())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_is_named_and_the_last_good_state_kept(where: str) -> None:
    calls = []

    def broken(batch: Batch) -> Any:
        def loss(given: Tensor, piece: slice) -> Tensor:
            value = next_token(batch)(given, piece)
            if given.requires_grad:
                calls.append(1)
            if len(calls) > 3 * 5:  # three micro-batches a step
                # the square root of nothing is finite, its gradient is not
                return value * torch.nan if where == "loss" else value + (0 * value).sqrt()
            return value

        return loss

    made, plain = trainer(broken)
    outcome = made.run()
    assert outcome.stopped == f"the {where} of step 6 is NaN or infinite"
    assert outcome.steps == 5
    assert outcome.best_step == 5
    assert all(torch.isfinite(p).all() for p in plain.parameters.values())


def test_where_nothing_is_finite_from_the_start_nothing_is_trained() -> None:
    def broken(batch: Batch) -> Any:
        return lambda given, piece: next_token(batch)(given, piece) * torch.nan

    made, _ = trainer(broken)
    with pytest.raises(SecateurError, match="before the first step"):
        made.run()


def test_a_rate_that_is_too_large_is_halved_until_it_helps() -> None:
    made, _ = trainer(rate=40.0, warmup=0, steps=40, patience=9)
    outcome = made.run()
    losses = [check.held_out for check in outcome.checks]
    assert losses[1] > losses[0]  # it was too large
    assert made._share < 1
    assert min(losses) < losses[0]
    # and where each check is better than the one before, nothing is halved
    gentle, _ = trainer(rate=0.02, steps=10)
    losses = [check.held_out for check in gentle.run().checks]
    assert losses == sorted(losses, reverse=True)
    assert gentle._share == 1


@pytest.mark.parametrize("rate", [0.15, 4.0])
@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_a_training_cut_short_ends_with_the_same_weights(
    step: int, rate: float, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"seed": step, "rate": rate, "patience": 9}
    whole, plain = trainer(**settings)
    expected = whole.run()
    assert (whole._share < 1) == (rate > 1)  # went back on the way
    store = tmp_path / "state.safetensors"
    first, _ = trainer(**settings, store=store)
    with telling(Cut(step)), pytest.raises(KeyboardInterrupt):
        first.run()
    again, other = trainer(**settings, store=store)
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


def test_the_relative_rate_follows_size_and_width() -> None:
    narrow = torch.full((4, 9), 2.0)
    assert relative_rate(narrow) == pytest.approx(10 * 2 / 6)
    assert relative_rate(0.1 * narrow) == pytest.approx(0.1 * relative_rate(narrow))
    assert relative_rate(narrow.repeat(4, 4)) == pytest.approx(relative_rate(narrow) / 4)
    assert relative_rate(torch.zeros(16)) == pytest.approx(10 * 1e-3 / 16)


def test_a_models_own_dropout_is_no_part_of_a_recipe(pruned: Any) -> None:
    opened = open_model(pruned("gpt2"))
    model = opened.whole(torch.float32)
    lora = Lora(model, linears(opened), rank=2, alpha=4.0, dropout=0.5, seed=0)
    data = Examples.of_windows(torch.randint(3, 128, (9, 16)))
    dropping: list[set[str]] = []

    def watched(batch: Batch) -> Any:
        dropping.append({n for n, m in model.named_modules() if m.training and "dropout" in n})
        return next_token(batch)

    made = Trainer(model, lora.parameters, data, 2, watched, schedule(),
                   device=torch.device("cpu"))  # fmt: skip
    made.step(0)
    assert dropping[0]
    assert all("lora_dropout" in name for name in dropping[0])
    made._check(0)
    assert not dropping[-1]
