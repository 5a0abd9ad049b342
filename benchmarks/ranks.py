"""One process against several that share its windows, in turns; one thread each.

    python benchmarks/ranks.py MODEL --text text.txt
    python benchmarks/ranks.py MODEL --text text.txt --case gradients --case probes --out out.json

Each measurement is a fresh process (or several, by torchrun), and the time is that from its first
stage to the plan, or to the repaired weights: imports and the reading of texts are not in it. The
claim: two processes on two idle cores are at least 1.6 times as fast where gradients or probes are
most of it. Seconds of the processor, of the first rank, stand beside those of the clock: on a
machine that others use they say what the clock would on an idle one, but for waiting.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import secateur
from secateur.launched import launched
from turns import RATIO, Clock, Time, continued, machine, spread

# What is most of the work, by the settings that ask for it.
CASES: dict[str, dict[str, Any]] = {
    "statistics": {"method": "flap", "dry_run": True},
    "gradients": {"method": "llm-pruner", "dry_run": True},
    "probes": {"method": "hywia", "dry_run": True},
    "candidates": {"importance": "wifv", "search": "kl", "search_rounds": 3, "dry_run": True},
    "repair": {"importance": "wifv", "search": "uniform", "repair": "refit"},
}
CLAIM = 1.6


def measured(options: argparse.Namespace, case: str) -> None:
    """Run a case in this process, one of several perhaps; the first prints its seconds."""
    started = launched()
    shared: Any = contextlib.nullcontext()
    if started.count > 1:
        from secateur.ranks.group import joined

        shared = joined(started)

    def run(clock: Any) -> None:
        secateur.prune(
            options.model,
            ratio=RATIO,
            calibration=options.text,
            samples=options.samples,
            length=options.length,
            evaluate="none",
            dtype="float32",
            progress=clock,
            **CASES[case],
        )

    with shared:
        seconds = Clock.of(run)
    if started.index == 0:
        print(json.dumps(seconds))


def seconds_of(options: argparse.Namespace, case: str, processes: int) -> Time:
    """The seconds of a case in so many fresh processes, by the clock and of the processor."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", f"{processes}"]
    command = [*start, __file__, options.model, "--text", options.text, "--child", case]
    command += ["--samples", str(options.samples), "--length", str(options.length)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    clock, processor = json.loads(done.stdout.splitlines()[-1])
    return clock, processor


def main() -> int:
    """Measure; 1 where the claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measured(options, options.child)
        return 0
    about = {
        "model": Path(options.model).name,
        "machine": machine(),
        "processes": options.processes,
        "windows": [options.samples, options.length],
    }
    found = continued(options.out, about)
    for case in options.case or CASES:
        turns: list[tuple[Time, Time]] = []
        for _ in range(options.rounds):
            one, several = (seconds_of(options, case, n) for n in (1, options.processes))
            turns.append((one, several))
            print(
                f"{case}: {one[0]:.2f} s alone, {several[0]:.2f} s shared; of the processor"
                f" {one[1]:.2f} s and {several[1]:.2f} s",
                flush=True,
            )
        found["rows"][case] = row = {
            "alone": spread([one[0] for one, _ in turns]),
            "shared": spread([several[0] for _, several in turns]),
            "faster": spread([one[0] / several[0] for one, several in turns]),
            "less of the processor": spread([one[1] / several[1] for one, several in turns]),
        }
        print(
            f"{case}: {row['faster']['median']:.2f} times as fast, by the processor"
            f" {row['less of the processor']['median']:.2f}",
            flush=True,
        )
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    claimed = (found["rows"][case] for case in ("gradients", "probes") if case in found["rows"])
    held = all(row["faster"]["median"] >= CLAIM for row in claimed)
    print(f"claim ({CLAIM} times, gradients and probes): {'holds' if held else 'DOES NOT HOLD'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
