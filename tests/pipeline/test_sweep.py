"""A sweep: its file, its cells, what is kept of each, and what happens when one fails."""

import csv
import itertools
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secateur
from conftest import cases
from secateur.cli.main import run
from secateur.config import PruneConfig, make_sweep
from secateur.config.sweeping import MANY, NOT_COMPARED, SHARED
from secateur.errors import SecateurError
from secateur.pipeline import carriers, compare, sweeping
from secateur.pipeline import cells as cells_module
from secateur.pipeline.carriers import DiedError, Processes
from secateur.pipeline.cells import Cell, cells_of, names_of
from secateur.pipeline.sweep_folder import Outcome, sweep_folder
from secateur.pipeline.sweep_schedule import Asking, Schedule, divided
from secateur.pipeline.sweep_share import Event, Share, make_share
from secateur.report import averages, read_report, row_of, spread

QUICK = {"samples": 4, "length": 16, "evaluate_tokens": 100, "align": 1}


class Here:
    """A carrier that makes shares in this process, and breaks off where it is told to."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.asked: list[tuple[int, ...]] = []
        self.deaths: dict[str, int] = {}
        self.begun: list[str] = []
        self.one = threading.Lock()

    def events(self, share: Share) -> Iterator[Event]:
        self.asked.append(share.make)
        found: list[Event] = []
        with self.one:  # torch has settings of a whole process
            make_share(share, found.append)
        for event in found:
            if "begun" in event:
                method = str(share.cells[event["begun"]]["method"])
                self.begun.append(method)
                yield event
                if self.deaths.get(method, 0) > 0:
                    self.deaths[method] -= 1
                    raise DiedError("killed by SIGKILL")
            else:
                yield event

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    carrier = Here()
    monkeypatch.setattr(sweeping, "carrier_of", lambda *args, **more: carrier)
    return carrier


@pytest.fixture
def asked(tiny_folder: Callable[..., Path], text_file: Path) -> dict[str, Any]:
    models = [str(tiny_folder()), str(tiny_folder("qwen3-gqa"))]
    return {
        "models": models,
        "methods": ["flap", "magnitude"],
        "ratios": [0.4, 0.2],
        "seeds": [3, 1],
        "settings": {"calibration": str(text_file), **QUICK},
    }


# --- the file -------------------------------------------------------------------------------------

GOOD = 'models = ["m"]\nmethods = ["flap"]\nratios = [0.2]\n'


@pytest.mark.parametrize(
    ("text", "says"),
    cases(
        {
            "no models": ('methods = ["flap"]\nratios = [0.2]', ["models is missing", "Type: mod"]),
            "no ratios": ('models = ["m"]\nmethods = ["flap"]', ["ratios is missing"]),
            "empty": ('models = ["m"]\nmethods = []\nratios = [0.2]', ["methods is an empty list"]),
            "empty seeds": (f"{GOOD}seeds = []", ["seeds is an empty list", "leave it out"]),
            "one model": ('model = "m"', ["takes models, a list", r'Type: models = \["path']),
            "a text": (GOOD.replace('["m"]', '"m"'), ["models 'm' will not do", "valid list"]),
            "a number": (GOOD.replace('"flap"', "3"), ["methods, entry 1: 3 will not do"]),
            "a ratio": (GOOD.replace("0.2", '"x"'), ["ratios, entry 1: 'x' will not do"]),
            "too much": (GOOD.replace("0.2", "1.2"), ["ratio = 1.2 will not do"]),
            "unknown": (f"{GOOD}modles = 3", ["Unknown key 'modles'", "Did you mean 'models'"]),
            "setting above": (f"samples = 3\n{GOOD}", ["samples is a setting", r"\[settings\]"]),
            "unknown setting": (f"{GOOD}[settings]\nsmples = 3", ["Did you mean 'samples'"]),
            "wrong setting": (f"{GOOD}[settings]\nsamples = 'x'", ["samples = 'x' will not do"]),
            "settings": (f"{GOOD}settings = 3", ["settings 3 will not do", "below it"]),
            "seed below": (f"{GOOD}[settings]\nseed = 3", ["takes several", r"seeds = \[0, 1"]),
            "budget": (f"{GOOD}[settings]\nmemory = '8GB'", ["memory, which is for prune"]),
            "twice": (GOOD.replace('"m"', '"m", "m"'), ["models names 'm' twice"]),
            "method": (GOOD.replace("flap", "flop"), ["Unknown method 'flop'", "'flap'"]),
            "no model": (GOOD.replace('"m"', '"./gone"'), ["No such model folder: gone"]),
            "no name": (GOOD.replace('"m"', '""'), ["without a name", "Give a folder"]),
            "no folder": (GOOD.replace('"m"', '"."'), ["config.json"]),
            "toml": ("models = [", ["is not TOML"]),
        }
    ),
)  # fmt: skip
def test_a_sweep_that_cannot_be_is_refused(
    text: str, says: list[str], tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(text)
    assert_refused("sweep", file, "--out", tmp_path / "swept", says=says)


def test_what_is_typed_wrong_is_refused(
    asked: dict[str, Any], tmp_path: Path, assert_refused: Callable[..., str], monkeypatch: Any
) -> None:
    file = written(asked, tmp_path)
    out = ["--out", tmp_path / "swept"]
    assert_refused("sweep", file, says=["Where to", "--dry-run"])
    assert_refused("sweep", file, *out, "--workers", 0, says=["workers must be 1 or more"])
    assert_refused("sweep", file, *out, "--on", "rays", says=["Did you mean 'ray'"])
    assert_refused("sweep", tmp_path / "gone.toml", *out, says=["No such file"])
    monkeypatch.setitem(sys.modules, "ray", None)
    assert_refused("sweep", file, *out, "--on", "ray", says=[r"pip install .secateur\[ray\]"])


def test_code_that_a_file_names_is_not_run_unasked(
    asked: dict[str, Any], tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    asked["settings"]["use"] = str(tmp_path / "own.py")
    file = written(asked, tmp_path)
    assert_refused("sweep", file, "--out", tmp_path / "swept", says=["not run unasked"])
    assert not (tmp_path / "ran").exists()


def test_every_setting_of_prune_has_a_place_or_a_reason() -> None:
    known = {*SHARED, *NOT_COMPARED, *MANY}
    assert known == set(PruneConfig.model_fields)


def written(asked: dict[str, Any], folder: Path) -> Path:
    import tomli_w

    file = folder / "sweep.toml"
    file.write_text(tomli_w.dumps(asked))
    return file


# --- cells ----------------------------------------------------------------------------------------


def test_cells_come_in_the_order_of_the_file(asked: dict[str, Any]) -> None:
    asked["repairs"] = ["none", "bias"]
    names = ("models", "methods", "ratios", "repairs", "seeds")
    wanted = list(itertools.product(*(asked[name] for name in names)))
    found = [cell.config for cell in cells_of(make_sweep(asked))]
    assert [(c.model, c.method, c.ratio, c.repair, c.seed) for c in found] == wanted


def test_a_cell_is_known_by_all_that_its_numbers_depend_on(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(**settings: Any) -> set[str]:
        own = {**asked, "settings": {**asked["settings"], **settings}}
        return {cell.key for cell in cells_of(make_sweep(own))}

    first = keys()
    assert len(first) == 16
    assert first == keys()
    assert not first & keys(samples=5)
    assert not first & keys(dtype="bfloat16")
    with monkeypatch.context() as newer:
        newer.setattr(cells_module, "versions", lambda: {"torch": "99"})
        assert not first & keys()
    model = Path(asked["models"][0])
    os.utime(model / "config.json", ns=(1, 1))
    assert len(first & keys()) == 8
    text = Path(asked["settings"]["calibration"])
    text.write_text(text.read_text() + "!")
    assert not first & keys()


def test_models_of_one_name_are_told_apart() -> None:
    assert names_of(["/a/m", "/b/m", "own/er", "/c/n"]) == ["m (1)", "m (2)", "own/er", "n"]


def test_what_is_left_is_divided_by_model_and_seed_or_by_method(asked: dict[str, Any]) -> None:
    cells = cells_of(make_sweep(asked))
    few, many = divided(cells, {}, 4), divided(cells, {}, 5)
    assert [len(work.make) for work in few] == [4] * 4
    assert [len(work.make) for work in many] == [2] * 8
    for works in (few, many):
        made = [work.cells[number].key for work in works for number in work.make]
        assert sorted(made) == sorted(cell.key for cell in cells)
    assert divided(cells, {cell.key for cell in cells}, 1) == []
    half = divided(cells, {cell.key for cell in cells if cell.config.seed == 3}, 1)
    assert {work.cells[n].config.seed for work in half for n in work.make} == {1}
    assert {len(work.cells) for work in half} == {4}  # what they share is that of all


# --- means ----------------------------------------------------------------------------------------


def test_mean_and_deviation_are_those_of_numpy() -> None:
    draw = np.random.default_rng(0)
    for count in (1, 2, 3, 7):
        numbers = draw.lognormal(3, 2, count).tolist()
        found = spread(numbers)
        assert found.count == count
        assert found.mean == pytest.approx(np.mean(numbers), rel=1e-12)
        wanted = None if count == 1 else pytest.approx(np.std(numbers, ddof=1), rel=1e-12)
        assert found.deviation == wanted
    assert (spread([1.0, float("inf")]).mean, spread([2.0, None]).text()) == (None, "not finite")
    assert (spread([2.0]).text(), spread([1.0, 3.0]).text()) == ("2.00", "2.00 ± 1.41")


def record(method: str, seed: int, after: float, model: str = "m") -> dict[str, Any]:
    return {
        "model": model, "method": method, "repair": "none", "ratio": 0.2, "removed": 0.2,
        "parameters": 9, "bytes_each": 4, "stock": seed > 0, "seconds": 1.0, "seed": seed,
        "perplexity": [{"window": 16, "tokens": 9, "before": 2.0, "after": after}],
    }  # fmt: skip


def test_runs_that_differ_in_their_seed_alone_make_one_mean() -> None:
    records = [record("a", 0, 3.0), record("b", 0, 5.0), record("a", 1, 4.0), record("a", 2, 8.0)]
    one, two = averages(map(row_of, records))
    assert (one.label, len(one.runs), one.form) == ("a", 3, "both")
    assert one.to_json()["perplexity"][0]["after"] == {
        "mean": pytest.approx(5.0),
        "deviation": pytest.approx(np.std([3.0, 4.0, 8.0], ddof=1)),
    }
    assert (two.label, two.after(16).deviation, two.after(99).count) == ("b", None, 0)


# --- the whole ------------------------------------------------------------------------------------


def test_a_sweep_says_what_comparing_each_model_with_each_seed_says(
    asked: dict[str, Any], tmp_path: Path, here: Here
) -> None:
    out = tmp_path / "swept"
    done = secateur.sweep(asked, out=out)
    assert done.left_out == []
    parts = ("model", "method", "ratio", "seed")
    order = [(cell.model, cell.config.method, cell.config.ratio, cell.config.seed)
             for cell in cells_of(make_sweep(asked))]  # fmt: skip
    assert [tuple(row[name] for name in parts) for row in done.rows] == order
    for model, seed in itertools.product(asked["models"], asked["seeds"]):
        rows = compare(
            model, methods=asked["methods"], ratios=asked["ratios"], seed=seed, **asked["settings"]
        )
        name = Path(model).name
        ours = [row for row in done.rows if (row["model"], row["seed"]) == (name, seed)]
        assert [timeless(row) for row in ours] == [timeless(row) for row in rows]
    table = list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))
    assert [line["seeds"] for line in table] == ["2"] * 8
    means = json.loads((out / "comparison.json").read_text())["means"]
    for line, mean, pair in zip(
        table, means, zip(done.rows[::2], done.rows[1::2], strict=True), strict=True
    ):
        after = [row["perplexity"][0]["after"] for row in pair]
        window = pair[0]["perplexity"][0]["window"]
        assert float(line[f"perplexity_{window}"]) == pytest.approx(np.mean(after))
        assert float(line[f"perplexity_{window}_deviation"]) == pytest.approx(np.std(after, ddof=1))
        assert mean["perplexity"][0]["after"]["mean"] == pytest.approx(np.mean(after))
    report = read_report(out / "report.json")
    assert len(report.rows) == 16
    assert report.seed is None
    assert all(row.calibration is not None and row.cut for row in report.rows)
    assert not (out / "passes").exists()
    assert str(tmp_path) not in (out / "report.html").read_text()


def timeless(value: Any) -> Any:
    """Without what differs from one run to the next."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key != "seconds"}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def test_a_sweep_goes_on_and_makes_what_is_new_alone(
    asked: dict[str, Any], tmp_path: Path, here: Here, capsys: Any
) -> None:
    out, file = tmp_path / "swept", written(asked, tmp_path)
    assert run(["sweep", str(file), "--out", str(out), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    files = sorted((out / "runs").glob("*.json"))
    report = json.loads((out / "report.json").read_text())
    files[0].unlink()
    files[5].write_text(files[5].read_text()[:300])  # as a power cut leaves it
    other = json.loads(files[9].read_text())
    files[9].write_text(json.dumps({**other, "row": {}}))
    (out / "runs" / ".partial-0123abcd").write_text("{")
    (out / ".partial-0123abcd").mkdir()
    here.asked.clear()
    assert run(["sweep", str(file), "--out", str(out), "--dry-run", "--json"]) == 0
    states = [cell["state"] for cell in json.loads(capsys.readouterr().out)["cells"]]
    assert (states.count("to be made"), here.asked) == (3, [])
    assert run(["sweep", str(file), "--out", str(out), "--json"]) == 0
    again = capsys.readouterr()
    assert "13 of 16 runs are done already" in again.err
    assert sum(map(len, here.asked)) == 3
    assert timeless(json.loads(again.out)) == timeless(whole)
    assert timeless(json.loads((out / "report.json").read_text())) == timeless(report)
    assert not list(out.rglob(".partial-*"))
    here.asked.clear()
    asked["settings"]["samples"] = 5
    asked["models"] = asked["models"][:1]
    assert run(["sweep", str(written(asked, tmp_path)), "--out", str(out)]) == 0
    assert "16 finished runs in runs/ are of other settings" in capsys.readouterr().err
    assert sum(map(len, here.asked)) == 8
    assert len(read_report(out / "report.json").rows) == 8
    here.asked.clear()
    assert run(["sweep", str(written(asked, tmp_path)), "--out", str(out), "--fresh"]) == 0
    assert sum(map(len, here.asked)) == 8


def test_a_cell_that_is_refused_is_recorded_and_spoils_no_other(
    asked: dict[str, Any], tmp_path: Path, here: Here, capsys: Any
) -> None:
    asked |= {"ratios": [0.2, 0.99], "seeds": [0], "models": asked["models"][:1]}
    file, out = written(asked, tmp_path), tmp_path / "swept"
    assert run(["sweep", str(file), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"refused: .*, flap \+ bias at 0.99, seed 0: The ratio asks for", shown)
    report = read_report(out / "report.json")
    assert [(row.method, row.ratio) for row in report.rows] == [("flap", 0.2), ("magnitude", 0.2)]
    assert {(one.method, one.ratio, one.died) for one in report.left_out} == {
        ("flap", 0.99, False), ("magnitude", 0.99, False),
    }  # fmt: skip
    assert "What was left out" in (out / "report.html").read_text()
    here.asked.clear()
    assert run(["sweep", str(file), "--out", str(out)]) == 0
    assert here.asked == []
    assert run(["sweep", str(file), "--out", str(out), "--again"]) == 0
    assert sum(map(len, here.asked)) == 2


def test_a_sweep_without_a_row_is_refused(
    asked: dict[str, Any], tmp_path: Path, here: Here
) -> None:
    asked |= {"ratios": [0.99], "seeds": [0]}
    with pytest.raises(SecateurError, match=r"No run .* made a row. The first, .*: The ratio asks"):
        secateur.sweep(asked, out=tmp_path / "swept")
    assert not (tmp_path / "swept" / "report.json").exists()


def test_what_all_of_a_model_share_is_refused_for_each_alone(
    asked: dict[str, Any], tmp_path: Path, here: Here
) -> None:
    """A text with too little in it stops what reads text, and nothing else."""
    asked["settings"] |= {"evaluate": "none"}
    Path(asked["settings"]["calibration"]).write_text("One.")
    done = secateur.sweep(asked, out=tmp_path / "swept")
    assert {row["method"] for row in done.rows} == {"magnitude"}
    assert {one["method"] for one in done.left_out} == {"flap"}
    assert (len(done.rows), len(done.left_out)) == (8, 8)


def test_a_cell_whose_process_dies_is_tried_again_and_then_left_out(
    asked: dict[str, Any], tmp_path: Path, here: Here, capsys: Any
) -> None:
    asked |= {"seeds": [0], "models": asked["models"][:1]}
    file, out = written(asked, tmp_path), tmp_path / "swept"
    here.deaths = {"flap": 2}
    assert run(["sweep", str(file), "--out", str(out), "--retries", "1"]) == 0
    said = capsys.readouterr().err
    assert said.count("its process died (killed by SIGKILL); it is tried again") == 2
    assert here.begun.count("magnitude") == 2  # one time each
    assert len(read_report(out / "report.json").rows) == 4
    shutil.rmtree(out)
    here.deaths = {"flap": 99}
    here.begun.clear()
    assert run(["sweep", str(file), "--out", str(out), "--retries", "1"]) == 2
    said = capsys.readouterr().err
    assert "2 of 4 runs died" in said
    assert "Type the same command" in said
    assert here.begun.count("flap") == 4
    report = read_report(out / "report.json")
    assert [one.why for one in report.left_out if one.died] == [
        "its process died 2 times, the last time: killed by SIGKILL"
    ] * 2
    assert len(report.rows) == 2
    here.deaths = {}
    assert run(["sweep", str(file), "--out", str(out)]) == 0  # the next sweep tries it
    assert len(read_report(out / "report.json").rows) == 4
    assert read_report(out / "report.json").left_out == ()


def test_a_process_that_dies_before_it_says_a_word_costs_one_cell(asked: dict[str, Any]) -> None:
    class Mute(Here):
        def events(self, share: Share) -> Iterator[Event]:
            self.asked.append(share.make)
            raise DiedError("exit code 1")
            yield {}

    cells = cells_of(make_sweep({**asked, "seeds": [0], "models": asked["models"][:1]}))
    carrier = Mute()
    schedule = Schedule(divided(cells, {}, 1), carrier, Asking(Path("store")), retries=1)
    found = dict(schedule.outcomes())
    assert len(found) == 4
    assert all(outcome.died == "its process died 2 times, the last time: exit code 1"
               for outcome in found.values())  # fmt: skip
    assert len(carrier.asked) == 8


def test_rows_are_in_the_order_of_the_file_whatever_is_done_first(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backwards(Here):
        def events(self, share: Share) -> Iterator[Event]:
            return reversed(list(super().events(share)))

    reference = Here(), tmp_path / "forwards"
    backwards = Backwards(workers=3), tmp_path / "backwards"
    for carrier, out in (reference, backwards):
        monkeypatch.setattr(sweeping, "carrier_of", lambda *a, carrier=carrier, **k: carrier)
        secateur.sweep(asked, out=out)
    for name in ("report.json", "comparison.json"):
        found = [json.loads((out / name).read_text()) for _, out in (reference, backwards)]
        assert timeless(found[0]) == timeless(found[1])


# --- the folder -----------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_left_alone(
    asked: dict[str, Any], tmp_path: Path, here: Here, assert_refused: Callable[..., str]
) -> None:
    file = written(asked, tmp_path)
    for name in ("runs/events", "report.html", "comparison.csv"):
        out = tmp_path / "other"
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        assert_refused("sweep", file, "--out", out, says=["is no folder of a sweep"])
        shutil.rmtree(out)
    (tmp_path / "file").write_text("")
    assert_refused("sweep", file, "--out", tmp_path / "file", says=["Cannot write"])


def test_one_sweep_at_a_time_writes_a_folder(asked: dict[str, Any], tmp_path: Path) -> None:
    with sweep_folder(tmp_path / "swept"), pytest.raises(SecateurError, match="Another run"):
        secateur.sweep(asked, out=tmp_path / "swept")


def test_what_is_kept_of_a_cell_is_read_as_it_was(asked: dict[str, Any], tmp_path: Path) -> None:
    cell, other, *_ = cells_of(make_sweep(asked))
    row = Outcome(record("flap", 0, float("inf")), {"cut": [], "blend": []}, {"a": 1}, ("note",))
    with sweep_folder(tmp_path / "swept") as folder:
        for outcome in (row, Outcome(refused="no\nway")):
            folder.keep(cell, outcome)
            found = folder.done([cell, other])
            assert list(found) == [cell.key]
            assert replace(found[cell.key], notes=()) == replace(outcome, notes=())
        folder.keep(other, Outcome(died="exit code 1"))
        assert list(folder.done([cell, other])) == [cell.key]
        renamed: Cell = replace(cell, key=cell.key[:16] + "0" * 48)
        assert folder.done([renamed]) == {}  # the key in the file counts


# --- processes ------------------------------------------------------------------------------------


def test_workers_share_the_cores_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carriers, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [Processes(n)._environment["OMP_NUM_THREADS"] for n in (1, 3, 16)] == ["8", "2", "1"]
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert "OMP_WAIT_POLICY" not in Processes(1)._environment
    assert Processes(2)._environment["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Processes(2)._environment["OMP_NUM_THREADS"] == "5"
