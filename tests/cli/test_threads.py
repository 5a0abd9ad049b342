"""What is said before torch is there: how threads wait, and in what pages memory is."""

import os
import subprocess
import sys
from itertools import chain, repeat
from pathlib import Path

import pytest

from secateur.cli import threads
from secateur.cli.large_pages import ask_for_large_pages


@pytest.mark.parametrize(
    ("running", "given", "policy"),
    [
        ([3, 3, 4, 9, 3], None, "PASSIVE"),
        ([1, 1, 1, 1, 1], None, None),
        ([2, 2, 2, 2, 2], None, None),  # of sixteen cores one
        ([3, 3, 1, 3, 3], None, None),  # it came and went
        ([3, 3, 4, 3, 3], "ACTIVE", "ACTIVE"),
        ([], None, None),  # no such file, or another form of it
    ],
)
def test_threads_sleep_beside_others(
    running: list[int],
    given: str | None,
    policy: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = chain((f"0.50 0.20 0.10 {n}/300 4242" for n in running), repeat("of another form"))
    monkeypatch.setattr(os, "environ", {} if given is None else {"OMP_WAIT_POLICY": given})
    monkeypatch.setattr(threads, "_BETWEEN", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(Path, "read_text", lambda _: next(looks))
    threads.let_threads_sleep_beside_others()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("prune m", "PASSIVE 1"),
        ("recover m", "PASSIVE 1"),
        ("inspect m", "None None"),
        ("prune --help", "None None"),
    ],
)
def test_the_program_says_so_before_torch_is_there(command: str, said: str) -> None:
    """In a process of its own, whose command is not run."""
    code = f"""
import os, sys, time
from secateur.cli import main, threads
program = sys.modules["secateur.cli.main"]
threads._others_are_busy = lambda: True
names = ("OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")
program.run = lambda _: print("torch" in sys.modules, *map(os.environ.get, names)) or 0
program.main({command.split()!r}, started=time.monotonic())
"""
    ours = ("OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")
    own = {name: value for name, value in os.environ.items() if name not in ours}
    source = "import sys; sys.argv = ['secateur']; import secateur_command" + code
    done = subprocess.run(
        [sys.executable, "-c", source], env=own, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"False {said}"


def test_who_has_said_something_of_large_pages_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"THP_MEM_ALLOC_ENABLE": "0"})
    ask_for_large_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


def test_where_nobody_says_threads_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(threads, "_LOADAVG", tmp_path / "not here")
    threads.let_threads_sleep_beside_others()
    assert not os.environ
