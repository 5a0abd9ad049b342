"""The state of a training: written when that is worth its time, the best when it changes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from short_training import trainer
from torch import Tensor

from conftest import Cut
from secateur.errors import SecateurError
from secateur.progress import telling
from secateur.recovery import forget_other, read_state, saving
from secateur.recovery.saving import Saving
from secateur.recovery.state import State, best_files, write_state


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(saving, "time", made)
    return made


@pytest.fixture
def slow_disk(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A disk that takes two seconds for every file; when they were begun."""
    begun: list[float] = []

    def slow(*given: Any, **more: Any) -> None:
        begun.append(clock.now)
        write_state(*given, **more)
        clock.now += 2.0

    monkeypatch.setattr(saving, "write_state", slow)
    return begun


def tensors(value: float, name: str) -> dict[str, Tensor]:
    return {f"{name}/x": torch.full((3, 5), value)}


def test_saving_takes_a_few_per_cent_of_the_time(
    clock: Clock, slow_disk: list[float], tmp_path: Path
) -> None:
    keeper = Saving(tmp_path / "state", "f")
    for _ in range(1000):  # an hour
        clock.now += 3.6
        keeper.save(tensors(1, "now"), tensors(1, "best"), {})
    assert 2 * len(slow_disk) <= 0.03 * clock.now + 4
    assert 2 * len(slow_disk) >= 0.02 * clock.now


def test_a_quick_disk_is_written_to_whenever_it_is_asked(tmp_path: Path) -> None:
    keeper = Saving(tmp_path / "state", "f")
    for step in range(20):
        keeper.save(tensors(step, "now"), tensors(0, "best"), {"step": step})
        state = read_state(tmp_path / "state", "f")
        assert state is not None
        assert state.values["step"] == step
        assert float(state.tensors["now/x"][0, 0]) == step


def test_the_best_is_written_when_it_changes_and_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "state"
    keeper = Saving(path, "f")
    marks = []
    for step, better in enumerate((True, False, False, True, False)):
        if better:
            keeper.best_changed()
        keeper.save(tensors(step, "now"), tensors(10 * better + step, "best"), {})
        (best,) = best_files(path)
        marks.append(best.name)
        state = read_state(path, "f")
        assert state is not None
        assert {"now/x", "best/x"} == set(state.tensors)
        assert float(state.tensors["best/x"][0, 0]) == (10 if step < 3 else 13)
    assert marks[0] == marks[1] == marks[2] != marks[3] == marks[4]
    # another run goes on with the one that is there
    again = Saving(path, "f")
    again.best_is(marks[-1].rpartition("-")[2])
    again.save(tensors(9, "now"), {}, {})
    assert [best.name for best in best_files(path)] == marks[-1:]


def test_a_kill_between_the_best_and_the_state_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    keeper = Saving(path, "f")
    keeper.save(tensors(1, "now"), tensors(1, "best"), {})
    with monkeypatch.context() as patch:

        def killed(*given: Any) -> None:
            if len(given) < 4:  # the state itself, not the best
                raise KeyboardInterrupt
            write_state(*given)

        patch.setattr(saving, "write_state", killed)
        keeper.best_changed()
        with pytest.raises(KeyboardInterrupt):
            keeper.save(tensors(2, "now"), tensors(2, "best"), {})
    assert len(list(best_files(path))) == 2
    state = read_state(path, "f")
    assert state is not None
    assert float(state.tensors["best/x"][0, 0]) == float(state.tensors["now/x"][0, 0]) == 1
    keeper.save(tensors(3, "now"), tensors(2, "best"), {})
    assert len(list(best_files(path))) == 1


@pytest.mark.parametrize("damage", ["gone", "other", "cut"])
def test_a_state_without_its_best_is_damaged_and_force_forgets_both(
    damage: str, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    Saving(path, "f").save(tensors(1, "now"), tensors(1, "best"), {})
    (best,) = best_files(path)
    if damage == "gone":
        best.unlink()
    elif damage == "cut":
        best.write_bytes(best.read_bytes()[:-1])
    else:
        write_state(path, State(tensors(1, "best"), {}), "another", best)
    with pytest.raises(SecateurError, match="or damaged"):
        read_state(path, "f")
    forget_other(path, "f")
    assert list(tmp_path.iterdir()) == []


def test_parameters_that_are_the_best_are_written_once(tmp_path: Path) -> None:
    store = tmp_path / "state"
    made, _ = trainer(steps=30, store=store)
    with telling(Cut(26)), pytest.raises(KeyboardInterrupt):
        made.run()
    assert made._outcome.steps == 26
    kinds = {name.partition("/")[0] for name in load_file(store)}
    assert kinds == {"now", "exp_avg", "exp_avg_sq", "step"}  # of step 25: between two checks
    made, _ = trainer(steps=30, store=store)
    with telling(Cut(28)), pytest.raises(KeyboardInterrupt):
        made.run()
    assert made._outcome.checks[-1].step == 27  # better, or gone back from
    kinds = {name.partition("/")[0] for name in load_file(store)}
    assert kinds == {"exp_avg", "exp_avg_sq", "step"}
    whole, plain = trainer(steps=30)
    whole.run()
    again, other = trainer(steps=30, store=store)
    again.run()
    assert all(torch.equal(t, other.tensors()[name]) for name, t in plain.tensors().items())


def test_a_training_that_may_not_save_often_goes_on_from_the_save_that_it_made(
    clock: Clock, slow_disk: list[float], tmp_path: Path
) -> None:
    store = tmp_path / "state"
    made, _ = trainer(steps=9, store=store)
    with telling(Cut(7)), pytest.raises(KeyboardInterrupt):
        made.run()
    assert slow_disk == [0.0, 2.0]  # the best and the state, and no more in no time
    state = read_state(store, "")
    assert state is not None
    assert state.values["steps"] == 1
    again, other = trainer(steps=9, store=store)
    assert again.run().steps == 9
    whole, plain = trainer(steps=9)
    whole.run()
    assert all(torch.equal(t, other.tensors()[name]) for name, t in plain.tensors().items())
