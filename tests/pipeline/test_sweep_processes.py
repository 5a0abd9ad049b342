"""Sweeps in processes of their own: killed at any time, they lose no run and mix none up."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w

from secateur.data.sources import embedded_folder
from secateur.pipeline.carriers import DiedError, Processes
from secateur.pipeline.sweep_share import Share
from secateur.report import read_report

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
METHODS = ["flap", "magnitude", "wanda-sp", "hywia"]
RESULTS = ("report.json", "comparison.json")


@pytest.fixture
def file(tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path) -> Path:
    """Two models, four methods, two ratios: sixteen cells."""
    asked = {
        "models": [str(embedded_folder()), str(tiny_folder("qwen3-gqa"))],
        "methods": METHODS,
        "ratios": [0.2, 0.4],
        "settings": {
            "calibration": str(text_file),
            "samples": 8,
            "length": 32,
            "evaluate_tokens": 200,
        },
    }
    path = tmp_path / "sweep.toml"
    path.write_text(tomli_w.dumps(asked))
    return path


def started(file: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    """A sweep in a group of processes of its own."""
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "secateur", "sweep", str(file), "--out", str(out), *more],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: "subprocess.Popen[str]", code: int = 0) -> str:
    said, _ = process.communicate(timeout=500)
    assert process.returncode == code, said
    return said


def until(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    """Wait until so many cells are done, and not much longer."""
    while len(list((out / "runs").glob("*.json"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def results(out: Path) -> list[Any]:
    return [timeless(json.loads((out / name).read_text())) for name in RESULTS]


def timeless(value: Any) -> Any:
    """Without what differs from one run to the next."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key != "seconds"}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def test_a_sweep_that_is_killed_twice_ends_as_one_that_is_left_alone(
    file: Path, tmp_path: Path
) -> None:
    ended(started(file, tmp_path / "alone"))
    out = tmp_path / "killed"
    for count in (3, 11):
        process = started(file, out)
        until(process, out, count)
        os.killpg(process.pid, signal.SIGKILL)
        ended(process, -signal.SIGKILL)
        done = {path: path.read_text() for path in (out / "runs").glob("*.json")}
        assert count <= len(done) < 16
        assert not (out / "report.json").exists()
        assert all(json.loads(text)["row"] for text in done.values())
    said = ended(started(file, out))
    assert f"{len(done)} of 16 runs are done already" in said
    assert all(path.read_text() == text for path, text in done.items())
    assert results(out) == results(tmp_path / "alone")
    order = [(row["model"], row["method"], row["ratio"]) for row in results(out)[0]["rows"]]
    models = ["embedded", next(tmp_path.glob("dense-*")).name]
    assert order == [(m, method, r) for m in models for method in METHODS for r in (0.2, 0.4)]
    names = {entry.name for entry in out.iterdir()}
    assert names == {"runs", "report.json", "report.html", "comparison.json", "comparison.csv"}


def test_several_workers_share_a_store_and_give_what_one_gives(file: Path, tmp_path: Path) -> None:
    """They are as many as there are processes to start: one for each model and method."""
    text = file.read_text().replace(str(embedded_folder()), str(next(tmp_path.glob("dense-*"))))
    asked = {**tomllib.loads(text), "methods": ["flap", "hywia"], "ratios": [0.3], "seeds": [0, 1]}
    file.write_text(tomli_w.dumps({**asked, "models": asked["models"][:1]}))
    ended(started(file, tmp_path / "one"))
    shared = ["--workers", "3", "--store", str(tmp_path / "passes")]
    ended(started(file, tmp_path / "three", *shared))
    assert results(tmp_path / "three") == results(tmp_path / "one")
    ended(started(file, tmp_path / "again", *shared))
    assert results(tmp_path / "again") == results(tmp_path / "one")
    assert any((tmp_path / "passes").iterdir())


def test_workers_end_with_the_process_that_asked(file: Path, tmp_path: Path) -> None:
    process = started(file, tmp_path / "out", "--workers", "2")
    until(process, tmp_path / "out", 1)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 1
    process.kill()
    ended(process, -signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


def test_an_interrupted_sweep_says_how_to_go_on(file: Path, tmp_path: Path) -> None:
    process = started(file, tmp_path / "out", "--workers", "2")
    until(process, tmp_path / "out", 1)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    said = ended(process, 130)
    assert "type the same command to go on" in said
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


def test_a_cluster_of_ray_gives_what_processes_give(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    ended(started(file, tmp_path / "here"))
    ended(started(file, tmp_path / "there", "--on", "ray", "--workers", "2"))
    assert results(tmp_path / "there") == results(tmp_path / "here")


OWN = """
import os, signal
from pathlib import Path
from secateur.importance import importance

@importance("deadly", paper="https://example.org")
def deadly(weight):
    \"\"\"Kills its process the first times.\"\"\"
    deaths = Path({place!r})
    count = len(list(deaths.iterdir()))
    if count < {times}:
        (deaths / str(count)).touch()
        {act}
    return weight.float().pow(2).sum(dim=(1, 2))
"""


def test_a_worker_that_dies_is_seen_named_and_tried_again(file: Path, tmp_path: Path) -> None:
    act, how = "os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    own = tmp_path / "own.py"
    own.write_text(OWN.format(place=str(deaths), act=act, times=2))
    asked = tomllib.loads(file.read_text())
    file.write_text(
        tomli_w.dumps({**asked, "methods": ["magnitude", "deadly"], "models": asked["models"][1:]})
    )
    out = tmp_path / "out"
    said = ended(started(file, out, "--use", str(own), "--retries", "2"))
    assert said.count(f"its process died ({how}") == 2
    assert ": deadly at 0.2, seed 0: its process died" in said
    assert len(read_report(out / "report.json").rows) == 4
    own.write_text(OWN.format(place=str(deaths), act=act, times=99))
    said = ended(started(file, tmp_path / "never", "--use", str(own), "--retries", "0"), 2)
    left = read_report(tmp_path / "never" / "report.json").left_out
    assert {one.method for one in left} == {"deadly"}
    assert len(left) == 2
    assert all(one.died and how in one.why for one in left)


def test_a_bug_in_a_worker_is_named(tmp_path: Path) -> None:
    """What a process says last is how it ended."""
    carrier = Processes(1)
    share = Share(({"model": "m", "rato": 3},), (0,), str(tmp_path / "store"), False, str(tmp_path))
    with pytest.raises(DiedError, match=r"exit code 1: .*Unknown setting 'rato'"):
        list(carrier.events(share))
    carrier.close()
    with pytest.raises(DiedError, match="killed by SIGKILL"):
        list(carrier.events(share))  # one that began while all were ended
