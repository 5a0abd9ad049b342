"""`benchmarks/peers.py`: what it compares is alike, and its table says what was measured.

The peers' code is not run here.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def loaded(name: str) -> ModuleType:
    """A script of the benchmarks as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def child() -> ModuleType:
    """The module that a measured process runs."""
    return loaded("peers_child")


@dataclass(frozen=True)
class Done:
    """What a run of the script came to."""

    code: int
    told: str
    error: str


Peers = Callable[..., Done]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Peers:
    """Run the script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = loaded("peers")

    def run(*words: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["peers.py", *map(str, words)])
        code, error = 1, ""
        try:
            code = script.main()
        except SystemExit as stopped:
            error = str(stopped)
        return Done(code, capsys.readouterr().out, error)

    return run


def entry(side: str, turn: int, seconds: float, peak: float, **more: Any) -> dict[str, Any]:
    """A run of the first comparison with LLM-Pruner."""
    return {
        "case": "LLM-Pruner param_first fp32, 10 x 64",
        "side": side,
        "turn": turn,
        "seconds": seconds,
        "loading": 1.0,
        "whole": seconds + 2,
        "processor": seconds,
        "peak": peak * 1e9,
        "imports": 3e8,
        **more,
    }


def test_table_compares_within_a_turn(peers: Peers, tmp_path: Path) -> None:
    # the second turn was twice as slow for both, and both quotients are of one turn
    runs = [
        entry("llm-pruner", 1, 8.0, 4.0),
        entry("ours", 1, 2.0, 1.0),
        entry("plain", 1, 3.5, 1.0),
        entry("llm-pruner", 2, 16.0, 4.0),
        entry("ours", 2, 4.0, 1.0),
        entry("ours", 3, 0.1, 1.0),  # theirs is missing: no pair
    ]
    out = tmp_path / "peers.json"
    out.write_text(json.dumps({"runs": runs}), encoding="utf-8")
    done = peers("--show", "--out", out)
    assert done.code == 0, done.error
    (line,) = (line for line in done.told.splitlines() if line.startswith("| LLM-Pruner"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == [
        "12.0",
        "3.0",
        "4.00 (4.00 - 4.00)",
        "4.00",
        "3.62",  # median of 7 / 2 and 15 / 4
        "2.00",  # 7 / 3.5
        "4.00",
        "1.00",
        "4.00",
        "",
    ]
    assert "goal 3: met" in done.told


def test_a_goal_that_is_not_met_is_said(peers: Peers, tmp_path: Path) -> None:
    out = tmp_path / "peers.json"
    runs = [entry("llm-pruner", 1, 2.0, 1.0), entry("ours", 1, 1.0, 2.0)]
    out.write_text(json.dumps({"runs": runs}), encoding="utf-8")
    done = peers("--show", "--out", out)
    assert done.code == 1
    assert "2.00 times faster, goal 3: NOT MET; NOT at less memory" in done.told


def test_the_page_keeps_all_but_its_table(peers: Peers, tmp_path: Path) -> None:
    out, page = tmp_path / "peers.json", tmp_path / "page.md"
    runs = [entry("llm-pruner", 1, 2.0, 1.0), entry("ours", 1, 1.0, 2.0)]
    out.write_text(json.dumps({"runs": runs}), encoding="utf-8")
    mark = "<!-- the table of peers.py -->"
    page.write_text(f"before\n{mark}\nold\n{mark}\nafter\n", encoding="utf-8")
    for _ in range(2):
        assert peers("--show", "--out", out, "--page", page).code == 1
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("| LLM-Pruner param_first fp32, 10 x 64 |") == 1


def test_code_that_is_not_as_published_is_refused(peers: Peers, tmp_path: Path) -> None:
    place = tmp_path / "FLAP"
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (
        ("init", "-q"),
        (*author, "commit", "-q", "--allow-empty", "-m", "another"),
    ):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    (tmp_path / ".git").rename(tmp_path / "git")
    place.mkdir()
    (tmp_path / "git").rename(place / ".git")
    done = peers("--peers", tmp_path, "--out", tmp_path / "out.json")
    assert done.code == 1
    assert "not at 3bb57db3449dd2fa04a5c2192de80e87e33be2b1" in done.error


def test_the_code_of_peers_stays_out_of_the_repository(peers: Peers, tmp_path: Path) -> None:
    done = peers("--peers", BENCHMARKS / "results" / "peers", "--out", tmp_path / "out.json")
    assert done.code == 1
    assert "is in this repository" in done.error


@pytest.mark.parametrize("ratio", [0.25, 0.4])
def test_ours_takes_as_many_units_as_theirs(
    child: ModuleType, tmp_path: Path, ratio: float
) -> None:
    heads, width, inner, layers = 6, 8, 75, 4
    sizes = {
        "vocab_size": 64,
        "hidden_size": heads * width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 64,
    }
    job = {
        "work": str(tmp_path),
        "sizes": sizes,
        "seed": 0,
        "most": [3, 8],
        "checkpoint": "float32",
        "method": "llm-pruner",
        "terms": "param_first",
        "samples": 3,
        "length": 8,
        "ratio": ratio,
        "layers": [1, 3],
    }
    child.build(job)
    report, model = child.ours(job)
    kept = child.units_of(model, tmp_path / "float32")
    for number, (queries, channels) in enumerate(kept):
        middle = 1 <= number < 3
        # LLM-Pruner keeps int(size * (1 - ratio)), and of heads whole ones alone
        lost = heads * width - int(heads * width * (1 - ratio))
        assert len(queries) == (heads - (lost // width) * middle) * width
        assert len(channels) == (int(inner * (1 - ratio)) if middle else inner)
        assert queries == sorted(queries)
    assert report["seconds"] > 0
    assert report["peak"] >= report["imports"] > 0
