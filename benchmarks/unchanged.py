"""Whether a change of the code changed a result: plans, weights and numbers, case by case.

    git switch main && python benchmarks/unchanged.py MODEL --text text.txt --write before.json
    git switch mine && python benchmarks/unchanged.py MODEL --text text.txt --against before.json

Each case is one command line. Of what it writes, every weight and plan is hashed, and every number
that it prints is kept to the last digit; seconds, paths and pages for people are left out. Both
runs must be on one machine: arithmetic differs between processors.
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from secateur.cli.main import run
from secateur.fusion import FUSIONS
from secateur.importance import IMPORTANCE
from secateur.methods import METHODS
from secateur.search import SEARCHES
from secateur.surgery import REPAIRS

# what takes time, or says where something lies
_PASSING = (
    "seconds",
    "tokens_per_second",
    "out",
    "text",
    "model",
    "teacher",
    "peak",
    "device",
    "notes",
    "settings",
)
_HASHED = (".safetensors", "plan.json")

# Searches that are told what attention loses.
_DIVIDED = ("UL-MM", "AL-MM")

_SHORT = "--calibration TEXT --samples 16 --length 64 --align 1"
_TRAINED = "--data TEXT --steps 2 --length 32"


def cases() -> dict[str, list[str]]:
    """By name, the commands of each case, in order; each finds what the one before it wrote."""
    found = {
        f"method {name}, {ratio}": [f"prune MODEL --method {name} --ratio {ratio} {_SHORT}"]
        for name in METHODS
        for ratio in (0.2, 0.5)
    }
    short = f"{_SHORT} --evaluate none"
    kept = {
        **{f"score {name}": f"--importance {name} --search uniform" for name in IMPORTANCE},
        **{f"fusion {name}": f"--fusion {name} --search uniform" for name in FUSIONS},
        **{
            f"search {name}": f"--search {name} --method {_method_of(name)}"
            for name in SEARCHES
            if name not in _DIVIDED
        },
        **{f"search {name}": f"--search {name} --attention-ratio 0.1" for name in _DIVIDED},
        **{f"repair {name}": f"--method wanda-sp --repair {name}" for name in REPAIRS},
        **{
            f"unit {name}": f"--granularity {name} --search global --repair none {own}"
            for name, own in {
                "query_head,channel": "",
                "attention_block": "--ratio 0.1",
                "mlp_block": "--ratio 0.3",
                "layer": "--ratio 0.3",
                "hidden": "--importance magnitude-l2",
            }.items()
        },
        "layers refitted": "--granularity layer --repair refit --search global --ratio 0.3",
        "layers rescored": "--granularity layer --rescore --repair none --ratio 0.4",
        "stock": "--stock --repair none",
        "own output": "--repair refit --target own_output",
        "states in files": "--method hywia --hidden-gib 0",
    }
    found |= {name: [f"prune MODEL {own} {short}"] for name, own in kept.items()}
    pruned = f"prune MODEL --method wanda-sp {short}"
    for recipe in ("distil", "lora", "groupwise"):
        found[f"recovery {recipe}"] = [pruned, f"recover BEFORE --recipe {recipe} {_TRAINED}"]
    tuned = f"recover BEFORE --recipe groupwise --loss next-token {_TRAINED}"
    found["few bits converted"] = [pruned, tuned, "convert BEFORE"]
    found["plan applied"] = [f"{pruned} --dry-run", "apply BEFORE/plan.json MODEL --evaluate none"]
    found["pruned twice"] = [pruned, f"prune BEFORE {short}"]
    methods = "flap,wanda-sp,saap"
    found["compared"] = [f"compare MODEL --methods {methods} --ratios 0.2,0.4 {_SHORT}"]
    return found


def _method_of(search: str) -> str:
    return "saap" if "by_sample" in SEARCHES[search].needs else "wanda-sp"


def result(commands: list[str], model: str, text: str) -> dict[str, Any]:
    """Hashes of what the last command wrote, and the numbers that it printed."""
    with tempfile.TemporaryDirectory() as place:
        before, printed = "", ""
        for number, command in enumerate(commands):
            out = f"{place}/{number}"
            names = {"MODEL": model, "TEXT": text}
            words = [names.get(word, word.replace("BEFORE", before)) for word in command.split()]
            heard, told = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(told):
                code = run([*words, "--out", out, "--json"])
            if code:
                return {"refused": told.getvalue().strip().splitlines()[-2:]}
            before, printed = out, heard.getvalue()
        files = sorted(path for path in Path(before).rglob("*") if path.name.endswith(_HASHED))
        hashes = {
            str(path.relative_to(before)): hashlib.sha256(_lasting(path)).hexdigest()
            for path in files
        }
        return {"files": hashes, "numbers": _numbers(json.loads(printed))}


def _lasting(path: Path) -> bytes:
    """What of a file is a result: the weights, and of a plan the units that stay."""
    if path.suffix != ".json":
        return path.read_bytes()
    plan = json.loads(path.read_text())
    return json.dumps(plan["axes"], sort_keys=True).encode()


def _numbers(printed: Any) -> Any:
    if isinstance(printed, dict):
        kept = printed.items()
        return {name: _numbers(value) for name, value in kept if name not in _PASSING}
    return [_numbers(value) for value in printed] if isinstance(printed, list) else printed


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Where two results differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from differences(before.get(name), after.get(name), f"{where}/{name}")
    elif before != after:
        yield f"{where}: {str(before)[:80]} -> {str(after)[:80]}"


def main() -> int:
    """Run every case, and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", required=True)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    known = json.loads(given.against.read_text()) if given.against else {}
    found, changed = {}, 0
    for model in given.models:
        for name, commands in cases().items():
            if given.only not in name:
                continue
            key = f"{Path(model).name}: {name}"
            found[key] = result(commands, model, given.text)
            said = list(differences(known[key], found[key])) if key in known else []
            changed += bool(said)
            print(f"{'CHANGED' if said else 'refused' if 'refused' in found[key] else 'ok'}  {key}")
            for line in [*said, *found[key].get("refused", [])][:12]:
                print(f"    {line}")
            sys.stdout.flush()
            if given.write:
                given.write.write_text(json.dumps(found, indent=1))
    print(f"{len(found)} cases, {changed} changed")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
