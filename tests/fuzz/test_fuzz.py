"""A share of the fuzzer's cases: each works, or is refused in our words (tests/fuzz/fuzz.py)."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_mutations import mutated_bytes, mutated_header, mutated_json, mutated_lines, mutated_toml

FUZZ = Path(__file__).parent / "fuzz.py"


def _run(*arguments: str, timeout: int) -> None:
    """In a process of its own: no types are checked there that users have no checks for."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(FUZZ), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_hundred_damaged_inputs_work_or_are_refused() -> None:
    _run("--count", "100", "--seed", "7", timeout=200)


@pytest.mark.slow
def test_thousands_of_damaged_inputs_work_or_are_refused() -> None:
    _run("--count", "2000", "--seed", "8", timeout=3000)


def test_the_same_seed_makes_the_same_damage_and_others_make_other() -> None:
    text = '{"a": [1, 2.5, "x"], "b": {"c": null, "d": true}}'
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    whole = len(header).to_bytes(8, "little") + header + b"\0" * 4
    for change, given in (
        (mutated_json, text),
        (mutated_toml, "[settings]\na = 1\nb = 'x'"),
        (mutated_lines, f"{text}\n{text}"),
        (mutated_bytes, text.encode()),
        (mutated_header, whole),
    ):
        made = [change(given, random.Random(seed)) for seed in (*range(40), *range(40))]  # type: ignore[operator]
        assert made[:40] == made[40:]
        assert len(set(made)) > 15
