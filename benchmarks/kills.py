"""Kill commands at random system calls; the old or the new result must be there, and no rest.

    python benchmarks/kills.py path/to/model --count 100 --seed 0
    python benchmarks/kills.py path/to/model --count 60 --moments

Each round runs a command under strace, which sends SIGKILL at the n-th call of a kind that changes
files; with --moments, commands whose passes take time are killed after a random time, and strace is
not needed. Then: what is at --out is whole, old or new. Then the same command again: what is there
is byte for byte what an undisturbed run writes (seconds of a comparison aside), nothing is beside
it, and with --moments no layer that was done is passed again.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import secateur.pipeline  # noqa: F401  (imported once: every command runs in a fork)
from secateur.checkpoint import Kept
from secateur.cli.main import run as cli

CALLS = "write,rename,renameat2,fsync,unlink,unlinkat,rmdir,mkdir,openat,flock,ftruncate,chmod"
SHORT = ["--samples", "4", "--length", "32", "--evaluate", "none", "--align", "1"]


class Layers:
    """How many layers were done, in whatever process: a file that grows by a byte for each."""

    def __init__(self, file: Path) -> None:
        self._file = file
        keep = Kept.layer

        def counted(kept: Kept, *args: Any) -> None:
            keep(kept, *args)
            with file.open("ab") as end:
                end.write(b".")

        Kept.layer = counted  # type: ignore[method-assign]

    def since(self) -> int:
        """Those since it was asked last."""
        count = self._file.stat().st_size if self._file.exists() else 0
        self._file.unlink(missing_ok=True)
        return count


class Desk:
    """A folder with a model, a text, a pruned model and a plan to work from."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.out = folder, folder / "desk" / "out"
        self.out.parent.mkdir()
        self.text = folder / "text.txt"
        lines = [f"Gardener {i} cuts branch {i * 7 % 13} of tree {i * i % 29}." for i in range(400)]
        self.text.write_text("\n".join(lines))
        self.model, self.small = model, folder / "small"
        self.tiny = folder / "tiny"
        own = [str(model), "--method", "wanda-sp", "--calibration", str(self.text), *SHORT]
        assert run(["prune", *own, "--out", str(self.small)])[0] == 0
        groupwise = ["--recipe", "groupwise", "--steps", "1", "--group", "8", *self.training]
        assert run(["recover", str(self.small), *groupwise, "--out", str(self.tiny)])[0] == 0
        train = [*self.training, "--steps", "6"]
        methods = ["--methods", "magnitude,wanda-sp", "--ratios", "0.2"]
        self.commands: dict[str, list[str]] = {
            "prune": ["prune", *own],
            "prune --force": ["prune", *own, "--force"],
            "apply": ["apply", str(self.small / "plan.json"), str(model), "--evaluate", "none"],
            "recover": ["recover", str(self.small), *train],
            "recover --force": ["recover", str(self.small), *train, "--force"],
            "compare": ["compare", str(model), *methods, *own[3:]],
            "convert": ["convert", str(self.tiny)],
        }
        fit = ["--calibration", str(self.text), "--samples", "16", "--length", "64"]
        fit += ["--evaluate-tokens", "500", "--align", "1"]
        self.long: dict[str, list[str]] = {
            "prune": ["prune", str(model), "--method", "hywia", "--repair", "refit", *fit],
            "recover": ["recover", str(self.small), *train[:-4], "--evaluate-tokens", "200"],
            "compare": [
                "compare",
                str(model),
                "--methods",
                "flap,saap,hywia",
                "--ratios",
                "0.3",
                *fit,
            ],
        }
        self.long["recover"] += ["--steps", "6"]

    @property
    def training(self) -> list[str]:
        """Options of a short training."""
        texts = ["--data", str(self.text), "--teacher", str(self.model)]
        return [*texts, "--samples", "40", "--length", "32", "--evaluate", "none"]

    def old(self) -> None:
        """An earlier result that --force replaces."""
        options = ["--method", "magnitude", "--evaluate", "none", "--out", str(self.out)]
        assert run(["prune", str(self.model), *options])[0] == 0

    def clear(self) -> None:
        """Nothing at the place, nor beside it."""
        shutil.rmtree(self.out.parent)
        self.out.parent.mkdir()


def run(
    command: Sequence[str], tracing: Sequence[str] = (), seconds: float = math.inf
) -> tuple[int, str]:
    """Run a command in a fork, which has imported everything; its exit code and what it said.

    `tracing` are strace's options, if it is to be traced. After so many `seconds` it is killed; a
    killed command has the code -9.
    """
    with tempfile.NamedTemporaryFile() as said:
        wait, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(wait, 1)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            os._exit(cli([*command]))
        if tracing:
            tracer = subprocess.Popen(["strace", "-f", "-qq", "-p", str(child), *tracing])
            while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
                time.sleep(0.01)
        os.write(go, b"!")
        if seconds < math.inf:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)  # one that has ended waits to be asked
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if tracing:
            tracer.wait()
        for end in (wait, go):
            os.close(end)
        return code, Path(said.name).read_text()


def held(folder: Path) -> dict[str, bytes]:
    """All files below `folder`, without what says how long something took or where it lay."""
    files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    compared = "comparison.json" in files
    return {name: steady(name, file.read_bytes(), compared) for name, file in files.items()}


def steady(name: str, data: bytes, compared: bool) -> bytes:
    """Only a comparison holds seconds, and the report of one."""
    if not compared or not name.startswith(("comparison", "report")):
        return data
    if not name.endswith(".json"):
        return b""
    return json.dumps(without_seconds(json.loads(data))).encode()


def without_seconds(record: Any) -> Any:
    """A record without what is under "seconds", at any depth."""
    if isinstance(record, dict):
        return {name: without_seconds(v) for name, v in record.items() if name != "seconds"}
    return [without_seconds(v) for v in record] if isinstance(record, list) else record


def calls_of(desk: Desk, command: Sequence[str], folder: Path) -> Counter[str]:
    """How often an undisturbed run makes each call that names our place, or writes a file."""
    log = folder / "calls"
    code, said = run([*command, "--out", str(desk.out)], ["-o", str(log), "-e", f"trace={CALLS}"])
    assert code == 0, said
    names = re.findall(r"^\d+ +(\w+)\(", log.read_text(errors="replace"), flags=re.MULTILINE)
    return Counter(names)


def rounds(desk: Desk, count: int, seed: int, only: Sequence[str]) -> list[str]:
    """`count` kills over all commands; what went wrong."""
    draw, wrong, died = random.Random(seed), [], 0
    names = [name for name in desk.commands if not only or name in only]
    known: dict[str, tuple[Counter[str], dict[str, bytes], dict[str, bytes] | None]] = {}
    for number in range(count):
        name = names[number % len(names)]
        command, forced = desk.commands[name], name.endswith("--force")
        if name not in known:
            desk.clear()
            old = None
            if forced:
                desk.old()
                old = held(desk.out)
            calls = calls_of(desk, command, desk.folder)
            known[name] = calls, held(desk.out), old
        calls, new, old = known[name]
        desk.clear()
        if forced:
            desk.old()
        call = draw.choice(sorted(calls))
        when = draw.randint(1, calls[call])
        killed_at = f"inject={call}:signal=KILL:when={when}"
        died += (
            run([*command, "--out", str(desk.out)], ["-o", "/dev/null", "-e", killed_at])[0] == -9
        )
        found = faults(desk, command, new, old)
        wrong += [f"{name}, {call} {when}: {fault}" for fault in found]
        print(f"{number + 1:>4} {name:<16} {call:<10} {when:>5} {found or 'well'}", flush=True)
    print(f"{count} rounds, {died} killed, {len(wrong)} faults")
    return wrong


def moments(desk: Desk, count: int, seed: int, only: Sequence[str]) -> list[str]:
    """`count` kills at random moments of the commands whose passes take time; what went wrong."""
    draw, wrong, died = random.Random(seed), [], 0
    names = [name for name in desk.long if not only or name in only]
    layers = Layers(desk.folder / "layers")
    known: dict[str, tuple[float, int, dict[str, bytes]]] = {}
    for number in range(count):
        name = names[number % len(names)]
        command = desk.long[name]
        desk.clear()
        if name not in known:
            began = time.monotonic()
            code, said = run([*command, "--out", str(desk.out)])
            assert code == 0, said
            known[name] = time.monotonic() - began, layers.since(), held(desk.out)
            desk.clear()
        seconds, whole, new = known[name]
        after = draw.uniform(0, seconds)
        died += run([*command, "--out", str(desk.out)], seconds=after)[0] == -9
        first = layers.since()
        found = faults(desk, command, new, None)
        again = layers.since()
        # a kill between a layer and its count: one more was done than was counted
        if not whole - 1 <= first + again <= whole and first + again > 0:
            found.append(f"{first} layers, then {again} of {whole}")
        wrong += [f"{name}, {after:.2f} s: {fault}" for fault in found]
        print(
            f"{number + 1:>4} {name:<10} {after:>6.2f} of {seconds:.2f} s {first:>4} + {again:>4}"
            f" of {whole:>4} layers {found or 'well'}",
            flush=True,
        )
    print(f"{count} rounds, {died} killed, {len(wrong)} faults")
    return wrong


def faults(
    desk: Desk, command: Sequence[str], new: dict[str, bytes], old: dict[str, bytes] | None
) -> list[str]:
    """What is not as it should be after a kill, and after the next run."""
    found = []
    there = held(desk.out) if desk.out.exists() else None
    if there not in (old, new):
        found.append("neither old nor new")
    if there is None:
        shutil.rmtree(desk.out, ignore_errors=True)
    code, said = run([*command, "--out", str(desk.out)])
    if code != 0 and not (there in (new, None) and "exists" in said):  # the bytes are looked at
        found.append(f"the next run: {said.strip()}")
    if held(desk.out) != new:
        found.append("other bytes")
    beside = sorted(entry.name for entry in desk.out.parent.iterdir() if entry != desk.out)
    return found + [f"left: {name}" for name in beside]


def main() -> None:
    """Read the arguments; the exit code is 1 if anything was lost or left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", action="store_true", help="kill after a random time")
    parser.add_argument("--only", action="append", default=[], help="one command; may be repeated")
    given = parser.parse_args()
    torch.set_num_threads(1)  # a fork has no others
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder), given.model.resolve())
        kill = moments if given.moments else rounds
        wrong = kill(desk, given.count, given.seed, given.only)
    for fault in wrong:
        print(fault)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
