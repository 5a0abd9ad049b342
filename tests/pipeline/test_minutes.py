"""A training of so many minutes is one of so many steps, settled once; no test looks at a clock."""

import itertools
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import secateur
from conftest import Cut
from secateur.cli.main import run
from secateur.config import make_config, make_recover_config, read_toml
from secateur.errors import SecateurError
from secateur.pipeline import chain, minutes, prune_and_recover, recovering
from secateur.pipeline.training_data import held_out, most_examples
from secateur.recovery import Pace, Schedule, most_steps, steps_file, timed_pass, timed_steps

SHORT = {"batch": 4, "length": 16, "evaluate": "none", "patience": 99}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every look at the clock is so many seconds after the last."""

    def ticks(seconds: float) -> None:
        now = partial(next, itertools.count(0, seconds))
        planned = partial(minutes.in_minutes, clock=now)
        monkeypatch.setattr(recovering, "in_minutes", planned)

    ticks(1.0)
    return ticks


def trained(folder: Path, text: Path, out: Path, **settings: Any) -> Any:
    return secateur.recover(folder, data=str(text), out=out, **{**SHORT, **settings})


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def settled(folder: Path) -> int:
    steps: int = read_toml(folder / "recovery.toml")["steps"]
    return steps


@pytest.mark.parametrize("settings", [{}, {"top_k": 0}, {"recipe": "lora"}])
def test_minutes_are_the_steps_that_the_record_names(
    settings: Any, clock: Any, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = pruned()
    done = trained(folder, text_file, tmp_path / "timed", minutes=0.6, **settings)
    steps = settled(done.out)
    assert done.config.steps == done.numbers["steps"] == steps >= 10
    assert done.config.minutes is None
    assert done.numbers["minutes"] == 0.6
    assert any("0.6 minutes are" in note for note in done.notes)
    same = trained(folder, text_file, tmp_path / "counted", steps=steps, **settings)
    assert weights(same.out) == weights(done.out) != weights(folder)
    assert same.numbers["checks"] == done.numbers["checks"]
    record, again = done.out / "recovery.toml", tmp_path / "again"
    assert run(["recover", "--config", str(record), "--out", str(again)]) == 0
    assert weights(again) == weights(done.out)
    clock(0.5)
    assert (
        settled(trained(folder, text_file, tmp_path / "quick", minutes=0.6, **settings).out) > steps
    )


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["settled", "trained"])
def test_a_training_cut_short_goes_on_with_the_number_that_was_settled(
    at: str, clock: Any, pruned: Any, text_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    folder, out = pruned(), tmp_path / "out"
    expected = trained(folder, text_file, tmp_path / "expected", minutes=1)
    with monkeypatch.context() as patch:
        if at == "settled":
            patch.setattr(recovering, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(folder, text_file, out, minutes=1, progress=Cut(26))
    (kept,) = tmp_path.glob(".out.training.safetensors.steps-*")
    assert (tmp_path / ".out.training.safetensors").exists() == (at == "trained")
    clock(0.01)  # by now the machine is idle
    done = trained(folder, text_file, out, minutes=1)
    assert any("as was settled before" in note for note in done.notes)
    assert settled(out) == settled(expected.out)
    assert weights(out) == weights(expected.out)
    assert (out / "recovery.toml").read_bytes() == (expected.out / "recovery.toml").read_bytes()
    assert not kept.exists()


def test_the_number_of_steps_goes_on_with_what_minutes_began(
    clock: Any, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder, out = pruned(), tmp_path / "out"
    expected = trained(folder, text_file, tmp_path / "expected", minutes=1)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, text_file, out, minutes=1, progress=Cut(26))
    done = trained(folder, text_file, out, steps=settled(expected.out))
    assert any("going on after step" in note for note in done.notes)
    assert weights(out) == weights(expected.out)
    assert not list(tmp_path.glob(".out.*"))


def test_a_damaged_number_is_told_and_force_settles_anew(
    clock: Any, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder, out = pruned(), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        trained(folder, text_file, out, minutes=1, progress=Cut(3))
    (kept,) = tmp_path.glob(".out.training.safetensors.steps-*")
    kept.write_bytes(b"nothing")
    with pytest.raises(SecateurError, match=r"steps-.*damaged(?s:.*)--force"):
        trained(folder, text_file, out, minutes=1)
    done = trained(folder, text_file, out, minutes=1, force=True)
    assert not any("settled before" in note for note in done.notes)


def test_pruning_takes_minutes_for_its_recovery(
    clock: Any, model: Path, text_file: Path, tmp_path: Path, calibrated: list[str]
) -> None:
    out, other = tmp_path / "small", tmp_path / "other"
    given = ["prune", str(model), *calibrated, "--evaluate", "none", "--ratio", "0.3"]
    assert run([*given, "--recover", "distil", "--minutes", "1", "--out", str(out)]) == 0
    record = read_toml(out / "recovery.toml")
    assert record["steps"] >= 10
    assert "minutes" not in read_toml(out / "run.toml")
    options = {"samples": 4, "length": 16, "align": 1, "evaluate": "none", "ratio": 0.3}
    _, done = prune_and_recover(
        model, out=other, recipe="distil", minutes=1, calibration=str(text_file), **options
    )
    assert done.numbers["minutes"] == 1
    assert (done.config.steps, weights(other)) == (record["steps"], weights(out))


def test_few_data_come_again(clock: Any, pruned: Any, text_file: Path, tmp_path: Path) -> None:
    folder = pruned()
    done = trained(folder, text_file, tmp_path / "out", minutes=1, length=60)
    seen = done.numbers["steps"] * SHORT["batch"]
    examples = done.numbers["data"]["examples"]
    assert seen > 1.5 * examples  # all that the text has
    told = f"{examples:,} examples comes {seen / examples:.1f} times: more text would serve better"
    assert any(told in note for note in done.notes)
    # what the teacher is not asked of again, steps get
    more = trained(folder, text_file, tmp_path / "few", minutes=1, length=60, samples=40)
    assert more.numbers["steps"] > done.numbers["steps"]
    enough = trained(folder, text_file, tmp_path / "enough", minutes=0.6)
    assert not any("more text" in note for note in enough.notes)


def test_what_is_asked_in_vain_is_told(
    clock: Any, pruned: Any, text_file: Path, model: Path, tmp_path: Path, assert_refused: Any
) -> None:
    command = ["recover", pruned(), "--data", text_file, "--out", tmp_path / "out"]
    both = ["--steps and --minutes each say how long", "--minutes alone, or --steps alone"]
    assert_refused(*command, "--steps", "9", "--minutes", "1", says=both)
    assert_refused(*command, "--epochs", "9", "--minutes", "1", says=["--epochs and --minutes"])
    assert_refused(*command, "--steps", "9", "--epochs", "1", says=["--steps and --epochs"])
    for odd in ("0", "-1", "nan", "inf"):
        assert_refused(*command, "--minutes", odd, says=["minutes"])
    clock(100.0)
    short = ["1 minutes are time for 0 steps here", "50 take about .* minutes", "more --minutes"]
    assert_refused(*command, "--length", "16", "--minutes", "1", says=short)
    pruning = ["prune", model, "--minutes", "1", "--out", tmp_path / "out"]
    assert_refused(*pruning, says=["--minutes are those of a recovery", "--recover distil"])


def test_few_steps_are_noted(clock: Any, pruned: Any, text_file: Path, tmp_path: Path) -> None:
    clock(2.0)
    done = trained(pruned(), text_file, tmp_path / "out", minutes=1)
    assert 10 <= done.numbers["steps"] < minutes.FEW_STEPS
    assert any("what so few steps gain is little" in note for note in done.notes)


def test_data_that_can_be_read_once_are_refused(
    clock: Any, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder, lines = pruned(), text_file.read_text().splitlines()
    with pytest.raises(SecateurError, match=r"read only once(?s:.*)Give it as a list"):
        secateur.recover(folder, data=iter(lines), out=tmp_path / "a", minutes=1, **SHORT)
    done = secateur.recover(folder, data=lines, out=tmp_path / "b", minutes=1, **SHORT)
    assert done.numbers["minutes"] == 1


def test_minutes_replace_the_steps_of_a_record(
    clock: Any, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder, out = pruned(), tmp_path / "longer"
    done = trained(folder, text_file, tmp_path / "out", steps=3)
    record = str(done.out / "recovery.toml")
    assert run(["recover", "--config", record, "--minutes", "1", "--out", str(out)]) == 0
    assert settled(out) > 3
    shutil.rmtree(out)
    record = str(done.out / "recovery.toml")
    assert run(["recover", "--config", record, "--epochs", "1", "--out", str(out)]) == 0


def test_the_teacher_sees_what_the_steps_see() -> None:
    for steps in (1, 7, 50, 200, 1000):
        for batch in (1, 4, 16):
            config = make_recover_config(model="x", steps=steps, batch=batch)
            examples = most_examples(config)
            assert examples - held_out(examples) == steps * batch
            assert 1 <= held_out(examples) <= 64


def test_most_steps_are_the_most_that_fit() -> None:
    pace = Pace(once=3.0, teacher=0.1, step=1.0, check=0.05)

    def seconds(steps: int) -> float:
        schedule = Schedule(steps, 4, None, 1e-3, True, 0, 0)
        return pace.seconds(schedule, 4 * steps, 5)

    steps = most_steps(seconds, 600.0)
    assert seconds(steps) <= 600 < seconds(steps + 1)
    checks = sum(
        Schedule(steps, 4, None, 1e-3, True, 0, 0).checks_after(n + 1) for n in range(steps)
    )
    assert seconds(steps) == pytest.approx(3 + 0.4 * steps + steps + 0.25 * (1 + checks))
    assert most_steps(seconds, 1.0) == 0


def test_a_pass_is_told_from_what_it_costs_once() -> None:
    now = [0.0]

    def run(count: int) -> int:
        now[0] += 7.0 + 0.5 * count
        return count

    made, once, each = timed_pass(run, 8, 24, lambda: now[0])
    assert made == 24
    assert (once, each) == pytest.approx((7.0, 0.5))


def test_steps_are_timed_for_about_as_long_as_is_asked() -> None:
    now, taken = [0.0], []

    class Steps:
        def step(self, number: int) -> None:
            taken.append(number)
            now[0] += 50.0 if number == 0 else 2.0  # the first makes what is made once

    assert timed_steps(Steps(), 15.0, lambda: now[0]) == 2.0
    assert taken == list(range(9))
    taken.clear()
    assert timed_steps(Steps(), 0.0, lambda: now[0]) == 2.0
    assert len(taken) == 4


def test_where_the_number_lies_follows_from_the_training(tmp_path: Path) -> None:
    state = tmp_path / ".out.training.safetensors"
    assert steps_file(state, "0123456789abcdef").name == f"{state.name}.steps-01234567"


def test_recoveries_in_a_row_share_the_minutes() -> None:
    pruning = make_config(model="dense", format="safetensors", prompts=2)
    first, second = chain._configs("dense", "distil,groupwise", pruning, 3.0)
    assert [one.minutes for one in (first, second)] == [1.5, 1.5]
    assert [one.prompts for one in (first, second)] == [0, 2]  # text is written of the last alone
    assert [one.teacher for one in (first, second)] == ["dense", "dense"]
    assert chain._configs("dense", "lora,groupwise", pruning, None)[0].teacher is None
