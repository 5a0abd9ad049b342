"""A small share of `benchmarks/kills.py`: real kills at system calls of every command."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.data.sources import embedded_folder

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not here")
def test_kills_lose_nothing_and_leave_nothing() -> None:
    command = [sys.executable, str(SCRIPT), str(embedded_folder()), "--count", "7", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("nothing can be traced here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 killed, 0 faults" in done.stdout
