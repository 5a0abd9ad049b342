"""What every pass costs, as a multiple of what nobody can do without: the table of docs/log.md.

    python benchmarks/passes.py MODEL --calibration c4-sample.jsonl --out results.json
    python benchmarks/passes.py MODEL --calibration c4-sample.jsonl --out results.json --neighbour

F is a plain forward of transformers over the same tokens, F+B forward and backward with the loss on
the next token. Ours and plain run in turns in one process, so that a noisy machine does not matter;
what is timed of ours is the whole run less its start: from the first layer of the first pass to the
end. Each figure is the median of the turns, with the least and the most beside it; by processor
time, too, for a machine that does something else besides. Rows are written one by one, and those
that are there already are not run again. With `--neighbour`, both sides of rows that are there are
timed beside a process that copies memory without end; threads wait as the program lets them there.

The passes are in `passes_rows.py`, what each must multiply at least in `floors.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import transformers

from passes_rows import LENGTH, ROWS, Row, Subject
from training_step import GOAL, measured
from turns import continued, machine, neighbour, spread

NAMES = (*ROWS, "distil", "starts")


def in_turns(row: Row, turns: int) -> dict[str, Any]:
    """Plain and ours one after the other, `turns` times."""
    row.plain()
    pairs = [(row.plain(), row.ours()) for _ in range(turns)]
    return {
        "name": row.name,
        "unit": row.unit,
        "goal": row.goal,
        "floor": row.floor,
        "plain_seconds": spread([plain[0] for plain, _ in pairs]),
        "seconds": spread([ours[0] for _, ours in pairs]),
        "multiple": spread([ours[0] / plain[0] for plain, ours in pairs]),
        "processor_multiple": spread([ours[1] / plain[1] for plain, ours in pairs]),
    }


def beside(row: Row, quiet: dict[str, Any], turns: int) -> dict[str, Any]:
    """The same beside a neighbour: how many times slower than when it was `quiet`."""
    row.plain()
    with neighbour():
        pairs = [(row.plain()[0], row.ours()[0]) for _ in range(turns)]
    found = dict(quiet)
    for at, side in enumerate(("plain_", "")):
        spent = spread([pair[at] for pair in pairs])
        found[f"{side}beside_seconds"] = spent
        found[f"{side}beside_multiple"] = spent["median"] / quiet[f"{side}seconds"]["median"]
    return found


def distil(subject: Subject, turns: int) -> dict[str, Any]:
    """A step of training, teacher cached: see `training_step.py`."""
    found = measured(
        str(subject.pruned()),
        subject.calibration,
        teacher=subject.folder,
        samples=40,
        length=LENGTH,
        repeats=turns,
        train="consumers",
    )
    seconds, cpu = found["seconds"], found["cpu_seconds"]
    return {
        "name": "distil, a step",
        "unit": "F+B of the student",
        "goal": GOAL,
        "floor": 1.0,
        "plain_seconds": spread(seconds["plain"]),
        "seconds": spread(seconds["step"]),
        "multiple": spread(found["multiples"]),
        "processor_multiple": spread(
            [own / plain for own, plain in zip(cpu["step"], cpu["plain"], strict=True)]
        ),
    }


def starts(model: str) -> list[dict[str, Any]]:
    """Seconds until the command line says something."""
    command = [sys.executable, "-m", "secateur"]
    helps = [_first([*command, "--help"]) for _ in range(3)]
    begins = [_first([*command, "prune", model, "--dry-run"], stderr=True) for _ in range(3)]
    return [
        {"name": "secateur --help", "unit": "s", "goal": 0.4, "seconds": spread(helps)},
        {"name": "first line of prune", "unit": "s", "goal": 3.0, "seconds": spread(begins)},
    ]


def _first(command: Sequence[str], *, stderr: bool = False) -> float:
    """Seconds to the end of a command, or to its first line."""
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if stderr else None
    ) as process:
        assert process.stdout is not None
        if stderr:
            process.stdout.readline()
        else:
            process.stdout.read()
        spent = time.perf_counter() - started
        process.kill()
    return spent


def line(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    value = row.get("multiple", row["seconds"])
    own = row.get("processor_multiple")
    processor = f"{own['median']:.2f}" if own else ""
    beside = " / ".join(
        f"{row[name]:.2f}" for name in ("beside_multiple", "plain_beside_multiple") if name in row
    )
    floor = f"{row['floor']:.2f}" if "floor" in row else ""
    plain = f"{row['plain_seconds']['median']:.1f}" if "plain_seconds" in row else ""
    return (
        f"| {row['name']} | {row['unit']} | {value['median']:.2f} ({value['least']:.2f} to"
        f" {value['most']:.2f}) | {processor} | {floor} | {row['goal']} |"
        f" {row['seconds']['median']:.1f} | {plain} |"
        f" {beside} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--neighbour", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.neighbour and "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as `secateur` does beside a busy process
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    transformers.logging.set_verbosity_error()
    about = {
        "model": Path(options.model).name,
        "machine": machine(),
        "windows": options.windows,
    }
    found = continued(options.out, about)
    print(
        "| pass | unit | multiple | by processor | floor | goal | seconds | plain |"
        " times slower beside a neighbour, ours / plain |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        subject = cache(
            partial(Subject, options.model, options.calibration, options.windows, Path(work))
        )
        for name in options.only:
            rows = found["rows"].get(name)
            if options.neighbour and name not in ROWS:
                continue
            if options.neighbour:
                if rows is None:
                    raise SystemExit(f"{name} is not there yet: measure it without --neighbour.")
                if "beside_multiple" not in rows[0]:
                    rows = [beside(ROWS[name](subject()), rows[0], options.turns)]
            elif rows is None and name == "starts":
                rows = starts(options.model)
            elif rows is None and name == "distil":
                rows = [distil(subject(), options.turns)]
            elif rows is None:
                rows = [in_turns(ROWS[name](subject()), options.turns)]
            found["rows"][name] = rows
            for row in found["rows"][name]:
                print(line(row), flush=True)
            if options.out is not None:
                options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
