"""Places that cannot be written, full disks, interrupts: nothing is left behind."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import secateur
from conftest import snapshot
from secateur import pipeline
from secateur.checkpoint import folder as folder_module
from secateur.checkpoint import shards
from secateur.errors import SecateurError
from secateur.pipeline import room
from secateur.structure import Plan
from secateur.units import size_text

SUPPORTED = "llama, mistral, qwen2, qwen3"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Refused = Callable[..., str]
Spoil = Callable[[Path], None]


# --- the folder to write --------------------------------------------------------------------------


@pytest.fixture
def calibrated(calibrated: list[str]) -> list[str]:
    """A method that tries nothing: what it chooses is not what these tests are about."""
    return [*calibrated, "--method", "flap"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("dry_run", [False, True])
def test_an_existing_folder_that_is_no_model_stays(
    force: bool,
    dry_run: bool,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "letter.txt").write_text("Keep me.")
    options = ["--force"] * force + ["--dry-run"] * dry_run
    words = ["not a model folder" if force else "exists", "another --out"]
    assert_refused("prune", model, *calibrated, "--out", taken, *options, says=words)
    words = words if force else [*words, "--force"]
    assert_refused("prune", model, *calibrated, "--out", taken / "letter.txt", *options, says=words)


def test_an_existing_model_folder_stays_without_force(
    model: Path, calibrated: list[str], assert_refused: Callable[..., str]
) -> None:
    assert_refused("prune", model, *calibrated, "--out", model, says=["exists", "--force"])


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_model_itself_is_never_replaced(
    dry_run: bool, model: Path, calibrated: list[str], assert_refused: Callable[..., str]
) -> None:
    options = [*calibrated, "--out", model, "--force", *["--dry-run"] * dry_run]
    assert_refused("prune", model, *options, says=["--out"])


@pytest.mark.parametrize("below", ["letter.txt/small", "letter.txt/deep/er/small", "x" * 300])
def test_a_place_that_cannot_be_written_is_refused(
    below: str,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    (tmp_path / "letter.txt").write_text("Keep me.")
    words = ["Cannot write to", "File exists|Not a directory|File name too long", "another --out"]
    assert_refused("prune", model, *calibrated, "--out", tmp_path / below, says=words)


def test_a_place_without_permission_is_refused(
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Simulated, because permissions do not bind root."""

    def denied(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(folder_module.Path, "mkdir", denied)
    words = ["Cannot write to", "Permission denied", "another --out"]
    assert_refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize("budget", [{"ratio": 0.2}, {"parameters": "60K"}, {"memory": "240kB"}])
def test_too_little_space_is_refused_before_any_pass(
    budget: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of the weights is known by the budget, of a plan and of a training."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    texts = {"calibration": "no such text", "evaluate": "none"}
    with pytest.raises(SecateurError, match="weights take"):
        secateur.prune(model, out=tmp_path / "small", **texts, **budget)
    opened = secateur.open_model(model)
    plan = Plan({}, opened.structure.architecture, opened.structure.weights)
    with pytest.raises(SecateurError, match="weights take"):
        secateur.apply(plan, model, out=tmp_path / "small")
    with pytest.raises(SecateurError, match="weights take"):
        secateur.recover(model, out=tmp_path / "small", data=["no", "text"], teacher=str(model))
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("budget", [{"ratio": 0.3}, {"parameters": "60K"}, {"memory": "240kB"}])
def test_what_is_foreseen_is_what_is_written(
    budget: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each budget, of the plan, and of a training, to some units; what is refused is in one."""
    looked: list[float] = []
    monkeypatch.setattr(room, "check_space", lambda folder, needed: looked.append(needed))
    quick: dict[str, Any] = {"evaluate": "none", "prompts": 0}
    small, again, better = (tmp_path / name for name in ("small", "again", "better"))
    result = secateur.prune(model, out=small, method="magnitude", repair="none", **quick, **budget)
    written = result.numbers["bytes"]["after"]
    secateur.apply(result.plan, model, out=again, repair="none", **quick)
    texts = {"data": ["A cat sat on a mat and saw a dog."] * 40, "length": 8, "steps": 1}
    secateur.recover(small, out=better, **texts, **quick)
    assert looked == pytest.approx([written] * 3, rel=0.1)
    assert looked[1:] == pytest.approx([written] * 2, rel=0.03)
    assert looked[0] < 0.95 * result.numbers["bytes"]["before"]


def test_what_a_large_result_takes_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.pipeline.room._WORTH", 1000)
    result = secateur.prune(model, out=model.parent / "small", method="magnitude",
                            evaluate="none", prompts=0)  # fmt: skip
    assert any(re.match(r"the result takes about \d+ kB of ", note) for note in result.notes)


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_the_folders_as_they_were(
    force: bool,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    out = tmp_path / "deep" / "er" / "small"
    if force:
        secateur.prune(model, method="magnitude", evaluate="none", out=out)
    held = load_file(model / "model.safetensors")
    held["lm_head.weight"][-1, -1] = float("nan")
    save_file(held, model / "model.safetensors", metadata={"format": "pt"})
    options = ["--evaluate", "none", "--out", out, *["--force"] * force]
    assert_refused("prune", model, *calibrated, *options, says=["lm_head"])


# --- a full disk ----------------------------------------------------------------------------------


def test_too_little_space_is_refused_before_writing(
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    words = [r"weights take \d+ kB", "0 bytes free", "another --out"]
    assert_refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (9, "9 bytes"), (312_400, "312 kB"), (1_400_000, "1.4 MB"), (26e9, "26 GB")],
)
def test_a_size_is_told_in_a_unit_that_shows_it(size: float, text: str) -> None:
    assert size_text(size) == text


FULL: dict[str, Exception] = {
    "oserror": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "quota": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    "safetensors": SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    ),
}


@pytest.mark.parametrize("error", list(FULL))
def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(
    error: str,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(tensors: object, path: Path, **kwargs: object) -> None:
        path.write_bytes(b"half a file")
        raise FULL[error]

    monkeypatch.setattr(shards, "save_file", full)
    words = ["No space left", "nothing was kept", "another --out"]
    assert_refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize("limit", [2**16, 256], ids=["in-weights", "in-config"])
def test_writes_that_the_system_stops_leave_nothing(
    limit: int,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    """Not simulated: the system lets no file of this process grow beyond `limit` bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        words = ["No space left", "nothing was kept", "another --out"]
        assert_refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_device_that_fails_in_the_middle_leaves_nothing(
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(tensors: object, path: Path, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: Input/output error (os error 5)")

    monkeypatch.setattr(shards, "save_file", broken)
    words = ["Cannot write to", "Input/output error", "another --out"]
    assert_refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


# --- interrupts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "stage",
    [
        "texts.calibration_windows",
        "contest.score_units",
        "cutting.added_biases",
        "publishing.write_folder",
        "publishing.copy_companions",
    ],
)
def test_an_interrupt_after_any_stage_leaves_nothing(
    stage: str,
    force: bool,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "deep" / "small"
    if force:
        secateur.prune(model, method="magnitude", evaluate="none", out=out)
    home, function = stage.split(".")
    module: Any = getattr(pipeline, home)
    original = getattr(module, function)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, function, interrupted)
    options = [*calibrated, "--out", out, *["--force"] * force]
    assert_refused(
        "prune", model, *options, says=["Interrupted; nothing was left behind"], code=130
    )


@pytest.mark.parametrize(
    "sent", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_a_terminated_process_leaves_nothing(sent: int, model: Path, tmp_path: Path) -> None:
    """SIGHUP: a terminal that was closed."""
    text = tmp_path / "long.txt"
    text.write_text("All work and no play makes Jack a dull boy. " * 40_000)
    before = snapshot(tmp_path)
    command = [sys.executable, "-m", "secateur", "prune", str(model), "--calibration", str(text)]
    process = subprocess.Popen(
        [*command, "--samples", "4096", "--out", str(tmp_path / "small")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),  # whatever the tests run under
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".small.partial-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err.splitlines()[-1]) == ("", "Interrupted; nothing was left behind.")
    assert snapshot(tmp_path) == before


# --- output that nobody takes ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("kind", ["full", "closed"])
def test_an_output_that_takes_nothing_is_one_line(
    kind: str, options: list[str], model: Path
) -> None:
    command = [sys.executable, "-m", "secateur", "inspect", str(model), *options]
    reader, writer = os.pipe()
    os.close(reader)
    target = os.open("/dev/full", os.O_WRONLY) if kind == "full" else writer
    done = subprocess.run(command, stdout=target, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "Cannot write to standard output" in done.stderr
