"""Threads that wait for others sleep where other processes are busy, and nowhere else."""

import os
from itertools import chain, repeat
from pathlib import Path

import pytest

from secateur.cli import threads


@pytest.mark.parametrize(
    ("running", "given", "policy"),
    [
        ([3, 2, 4, 2, 2], None, "PASSIVE"),
        ([1, 1, 1, 1, 1], None, None),
        ([3, 2, 1, 2, 2], None, None),  # it came and went
        ([3, 2, 4, 2, 2], "ACTIVE", "ACTIVE"),
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
    monkeypatch.setattr(Path, "read_text", lambda _: next(looks))
    threads.let_threads_sleep_beside_others()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_where_nobody_says_threads_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(threads, "_LOADAVG", tmp_path / "not here")
    threads.let_threads_sleep_beside_others()
    assert not os.environ
