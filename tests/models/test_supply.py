"""Weights on their way: read once where they stay, read ahead in the order of the walk."""

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secateur
from conftest import tiny_model
from secateur import device_memory
from secateur.checkpoint import View
from secateur.device_memory import Room
from secateur.errors import SecateurError
from secateur.models import StreamedModel, open_model
from secateur.models.ahead import Ahead
from secateur.models.supply import stays
from secateur.stats import Walk, collect

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Counted:
    """A streamed model that counts what is read of its view, and by which thread."""

    def __init__(self, variant: str = "llama-gqa", **options: Any) -> None:
        self.read: Counter[str] = Counter()
        self.threads: set[str] = set()
        opened = open_model(tiny_model(variant))
        self.axes = opened.structure.axes
        plain = opened.streamed(device="cpu")

        def noted(name: str) -> Tensor:
            self.read[name] += 1
            self.threads.add(threading.current_thread().name)
            return opened.weights.tensor(name)

        weights = View(opened.weights.specs, noted)
        self.source = StreamedModel(plain.model, opened.family, weights, CPU, **options)

    def statistics(self, tokens: Tensor) -> list[Tensor]:
        found = collect(Walk(self.source, tokens, batch=4), self.axes, ["input_norm"])
        return [found[axis.name]["input_norm"] for axis in self.axes]


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "secateur-ahead"]


def test_on_a_cpu_every_pass_reads_and_no_thread_does(tokens: Tensor) -> None:
    model = Counted()
    first, second = model.statistics(tokens), model.statistics(tokens)
    assert all(map(torch.equal, first, second))
    assert model.source.supply.ahead is None
    assert model.threads == {"MainThread"}
    layer = [count for name, count in model.read.items() if ".layers." in name]
    assert set(layer) == {2}


@pytest.mark.parametrize("variant", ["llama-gqa", "gpt2"])
def test_what_stays_is_read_once(variant: str, tokens: Tensor) -> None:
    plain, model = Counted(variant), Counted(variant, resident="yes")
    expected = plain.statistics(tokens)
    for _ in range(2):
        assert all(map(torch.equal, expected, model.statistics(tokens)))
    assert set(model.read.values()) == {1}
    with model.source.layer(0) as module:
        kept = next(module.parameters())
    assert next(model.source.model.get_submodule(model.source._path).parameters()).is_meta
    with model.source.layer(0) as module:
        assert next(module.parameters()) is kept


def test_resident_is_a_setting(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"calibration": str(text_file), "length": 16, "samples": 8}
    results = [
        secateur.prune(tiny_folder(), out=tmp_path / word, resident=word, device_gib=1.0, **options)
        for word in ("auto", "yes")
    ]
    assert results[0].plan.keep == results[1].plan.keep
    one, other = (r.numbers["perplexity"] for r in results)
    assert one == other
    values = secateur.evaluate(
        tmp_path / "yes", str(text_file), evaluate_tokens=200, resident="yes"
    )
    assert values
    with pytest.raises(SecateurError, match="resident"):
        secateur.evaluate(tmp_path / "yes", str(text_file), resident="always")


def ahead_of(model: Counted) -> Counted:
    """The same, reading ahead as on a GPU."""
    model.source.supply.ahead = Ahead()
    return model


def test_reading_ahead_changes_nothing_but_the_thread(tokens: Tensor) -> None:
    expected, model = Counted().statistics(tokens), ahead_of(Counted())
    assert all(map(torch.equal, expected, model.statistics(tokens)))
    assert "secateur-ahead" in model.threads
    layer = [count for name, count in model.read.items() if ".layers." in name]
    assert set(layer) == {1}, "what came ahead is not read again"
    assert not alive()


def test_reading_ahead_goes_with_the_order_of_the_walk(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: list[int] = []
    model = ahead_of(Counted())
    start = Ahead.expect
    monkeypatch.setattr(
        Ahead,
        "expect",
        lambda self, number, read: (expected.append(number), start(self, number, read)),
    )
    walk = Walk(model.source, tokens, batch=4, without=[1]).prepared()
    last = len(model.source) - 1
    assert [step.index for step in walk.layers(reverse=True)] == [last, *range(last - 1, 1, -1), 0]
    assert expected == [*range(last - 1, 1, -1), 0]


def test_a_walk_that_fails_leaves_no_thread(tokens: Tensor) -> None:
    model = ahead_of(Counted())
    walk = Walk(model.source, tokens, batch=4).prepared()

    def interrupted() -> None:
        for _ in walk.layers():
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        interrupted()
    assert not alive()
    assert model.source.supply.ahead is not None
    assert model.source.supply.ahead._job is None, "what was read is gone"
    assert all(one.is_meta for one in model.source.model.parameters())


def test_a_damaged_layer_is_an_error_where_it_is_entered(tokens: Tensor) -> None:
    model = ahead_of(Counted())
    view = model.source._weights

    def damaged(name: str) -> Tensor:
        if ".layers.1." in name:
            raise SecateurError("model.safetensors is truncated or corrupt")
        return view.tensor(name)

    model.source.supply._weights = View(view.specs, damaged)
    visited = []
    walk = Walk(model.source, tokens, batch=4).prepared()

    def visit() -> None:
        for step in walk.layers():
            visited.append(step.index)

    with pytest.raises(SecateurError, match="truncated"):
        visit()
    assert visited == [0]
    assert not alive()


def test_weights_stay_on_a_gpu_that_has_twice_as_much_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.models.supply.free_bytes", lambda device: 100)
    assert [stays("auto", CUDA, size) for size in (50, 51)] == [True, False]
    assert [stays("yes", CUDA, size) for size in (100, 101)] == [True, False]
    assert not stays("no", CUDA, 1)
    assert [stays(word, CPU, 1) for word in ("auto", "yes", "no")] == [False, True, False]


def test_what_is_to_stay_and_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.models.opened.StreamedModel", _too_large)
    with pytest.raises(SecateurError, match=r"do not fit[^\n]*\nType: --resident no"):
        open_model(tiny_model()).streamed(device="cpu", resident="yes")


def _too_large(*args: Any, **options: Any) -> StreamedModel:
    return StreamedModel(*args, **{**options, "resident": "no"})


def test_weights_that_stay_have_their_room(tokens: Tensor) -> None:
    room = Room(CPU)
    model = Counted(resident="yes", room=room)
    size = sum(p.numel() * p.element_size() for p in model.source.model.parameters())
    assert room.promised == size
    model.statistics(tokens)
    with model.source.back():
        pass
    assert room.promised == 0


def test_weights_that_nobody_reads_any_more_have_no_room() -> None:
    room = Room(CPU)
    model = Counted(resident="yes", room=room)
    del model
    gc.collect()
    assert room.promised == 0


def test_weights_that_stayed_are_let_go_and_read_again(tokens: Tensor) -> None:
    room = Room(CPU)
    model = Counted(resident="yes", room=room)
    before = model.statistics(tokens)
    kept = [weakref.ref(parameter) for parameter in model.source.supply._kept.values()]
    model.source.supply.let_go()
    gc.collect()
    assert {one() for one in kept} == {None}
    assert room.promised == 0
    assert all(map(torch.equal, before, model.statistics(tokens)))
    assert set(model.read.values()) == {2}


def test_device_memory_on_a_cpu_is_none() -> None:
    assert (
        device_memory.free_bytes(CPU) == device_memory.margin_bytes(CPU) == Room(CPU, 9.0).left == 0
    )
    assert device_memory.sent(torch.ones(2), CPU).tolist() == [1, 1]
