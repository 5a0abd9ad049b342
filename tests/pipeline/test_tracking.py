"""Curves of losses: what trackers get is what the record has."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.cli.main import run
from secateur.pipeline import tracking
from secateur.progress import draw, telling
from secateur.recovery.schedule import CHECKS

FEW = {"samples": 8, "length": 16, "evaluate": "none", "recipe": "lora"}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """By name, the values at each step in the event files of one run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        name: {one.step: one.value for one in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_event_files_have_the_losses_of_the_record(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    out, steps = tmp_path / "out", 4
    done = secateur.recover(
        tiny_folder(), data=str(text_file), steps=steps, out=out, track="tensorboard", **FEW
    )
    (made,) = (tmp_path / "out-logs").iterdir()
    assert made.name.startswith("lora-")
    assert any(str(tmp_path / "out-logs") in note for note in done.notes)
    found = scalars(made)
    checks = {check["step"]: check["held_out"] for check in done.numbers["checks"]}
    assert found["held_out_loss"] == pytest.approx(checks, rel=1e-6)
    assert steps <= CHECKS  # so that every step is checked
    trained = {c["step"]: c["trained"] for c in done.numbers["checks"] if "trained" in c}
    assert found["loss"] == pytest.approx(trained, rel=1e-6)
    assert found["rate"].keys() == set(range(1, steps + 1))
    config = done.config
    rates = [config.schedule(7).rate * config.schedule(7).factor(step) for step in range(steps)]
    assert found["rate"][1] == pytest.approx(rates[0], rel=1e-6)
    assert str(tmp_path) not in next(made.rglob("hparams.yml")).read_text()
    untracked = secateur.recover(
        tiny_folder(), data=str(text_file), steps=steps, out=tmp_path / "again", **FEW
    )
    assert untracked.numbers["checks"] == done.numbers["checks"]
    assert not (tmp_path / "again-logs").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_comparison_is_a_run_for_each_row(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    rows = secateur.compare(
        str(tiny_folder()), methods=["magnitude", "random"], ratios=[0.3], align=1,
        evaluate=str(text_file), track="tensorboard", logs=tmp_path / "logs",
    )  # fmt: skip
    for row in rows:
        found = scalars(tmp_path / "logs" / f"{row['method']}-0.3-{row['repair']}")
        assert found["parameters"] == {0: row["parameters"]}
        for one in row["perplexity"]:
            assert found[f"perplexity/{one['window']}"][0] == pytest.approx(one["after"])


class Fake(types.ModuleType):
    """A package of a tracker that writes down what it is asked."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.asked: list[tuple[str, Any, Any]] = []
        self.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
        self.config = types.SimpleNamespace(update=self._named("config"))
        validation = types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=9, MAX_PARAMS_TAGS_PER_BATCH=9)
        self.utils = types.SimpleNamespace(validation=validation)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._named(name)

    def _named(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.asked.append((name, args, kwargs))
            return [] if name == "search_experiments" else self

        return call


@pytest.mark.parametrize(("kind", "log"), [("wandb", "log"), ("mlflow", "log_metrics")])
def test_other_trackers_get_the_same(
    kind: str, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(kind)
    monkeypatch.setitem(sys.modules, kind, fake)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    track = tracking.track_of(kind, tmp_path / "logs")
    with telling(), tracking.curves(track, "lora-1", {"seed": 3, "data": None}):
        draw(1, loss=2.0, rate=0.5)
        draw(2, held_out_loss=1.5)
    draw(3, loss=1.0)
    logged = [(args[0], kwargs["step"]) for name, args, kwargs in fake.asked if name == log]
    assert logged == [({"loss": 2.0, "rate": 0.5}, 1), ({"held_out_loss": 1.5}, 2)]
    assert str(tmp_path / "logs") in str(fake.asked[0])
    assert "finish" in fake.asked[-1][0] or "end_run" in fake.asked[-1][0]


def test_a_tracker_that_breaks_is_told_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake("wandb")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    track = tracking.track_of("wandb", tmp_path)
    with telling() as told:
        with tracking.curves(track, "lora-1", {}):
            monkeypatch.setattr(Fake, "__getattr__", lambda self, name: 1 / 0)
            draw(1, loss=2.0)
            draw(2, loss=2.0)
    assert [note for note in told.notes if "takes no more" in note] == [
        "--track wandb takes no more: division by zero"
    ]
    with telling(), pytest.raises(secateur.SecateurError, match="wandb does not start: division"):
        with tracking.curves(track, "lora-1", {}):
            pass


def test_what_cannot_be_tracked_is_refused_before_the_work(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"tensorboard": True, "mlflow": False}
    monkeypatch.setattr(tracking, "find_spec", lambda name: known[name] or None)
    out = ["--out", str(tmp_path / "out")]
    compare = ["compare", "m", "--methods", "flap", "--track"]
    for words, says in (
        (["recover", "m", *out, "--track", "mlflow"], "Type: pip install mlflow"),
        (["recover", "m", *out, "--track", "tensorbord"], "Did you mean 'tensorboard'"),
        (["prune", "m", *out, "--track", "mlflow", "--recover", "distil"], "pip install mlflow"),
        (["prune", "m", *out, "--track", "tensorboard"], "Add --recover distil"),
        ([*compare, "mlflow", *out], "Type: pip install mlflow"),
        ([*compare, "tensorboard"], "Add --out DIR"),
    ):
        assert run(words) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") <= 2
    assert not list(tmp_path.iterdir())


def test_mlflow_without_its_database_is_refused_where_no_server_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "find_spec", lambda name: name == "mlflow" or None)
    with pytest.raises(secateur.SecateurError, match="Type: pip install mlflow"):
        tracking.track_of("mlflow", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking.track_of("mlflow", tmp_path) is not None
