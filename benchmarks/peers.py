"""Secateur beside the public code of FLAP and LLM-Pruner: seconds and memory, in turns.

    python benchmarks/peers.py --peers DIR

DIR is a folder outside this repository. What is not there is put there: the code of the peers, at
the commits below, from GitHub; an environment for it; and a random Llama. Every run is a process of
its own (`peers_child.py`), theirs and ours in turns. Each is written as it ends, so that the same
command goes on where it was stopped; where our code changed since, it begins anew. `peers.md` says
what is compared and has the table, which this script keeps.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memory import surroundings
from peers_cases import CASES, LAYERS, PEERS, REQUIREMENTS, SEED, SIZES, Case, Peer
from peers_table import gone, keep_table, same_share, show

HERE = Path(__file__).parent
CHILD = HERE / "peers_child.py"


def jobs(case: Case, side: str, folder: Path) -> dict[str, Any]:
    """What a child is told."""
    return {
        **dataclasses.asdict(case),
        "side": side,
        "sizes": SIZES,
        "layers": LAYERS,
        "ratio": 0.2 if case.method == "flap" else 0.25,
        "code": str(folder / PEERS[side].folder) if side in PEERS else None,
        "work": str(folder / "model"),
    }


def run(command: Sequence[str | Path], **options: Any) -> str:
    """What a command prints; where it fails, the end of what it said is the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def child(python: Path, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """Do a job in a fresh process of an environment; `whole` are the seconds of that process."""
    tuned = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: x for name, x in os.environ.items() if not name.startswith(tuned)}
    environment |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if job["side"] in PEERS:
        environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as place:
        asked, answer = Path(place) / "job.json", Path(place) / "answer.json"
        asked.write_text(json.dumps({**job, "answer": str(answer)}), encoding="utf-8")
        since = time.monotonic()
        run([python, CHILD, asked], cwd=place, env=environment)
        whole = time.monotonic() - since
        return {**json.loads(answer.read_text(encoding="utf-8")), "whole": whole}


def code_of(peer: Peer, folder: Path) -> None:
    """See that the code of a peer is there, at its commit and as it was published."""
    place = folder / peer.folder
    if not place.exists():
        print(f"fetching {peer.source}", flush=True)
        run(["git", "init", "-q", place])
        git(place, "fetch", "-q", "--depth", "1", peer.source, peer.commit)
        git(place, "update-ref", "HEAD", peer.commit)
        git(place, "checkout", "-q", peer.commit, "--", *peer.files)
    if (found := git(place, "rev-parse", "HEAD").strip()) != peer.commit:
        raise SystemExit(f"{place} is at {found}, not at {peer.commit} of {peer.source}")
    if changed := git(place, "status", "--porcelain", "-uno", "--", *peer.files).strip():
        raise SystemExit(f"{place} was changed, and peers run unmodified:\n{changed}")


def git(place: Path, *words: str) -> str:
    """What git prints in a folder that is a repository itself, not a part of another."""
    if not (place / ".git").exists():
        raise SystemExit(f"{place} is no git repository; remove it, and it is fetched anew")
    return run(["git", "-C", place, *words])


def environment_of(folder: Path, base: str) -> Path:
    """The Python of the peers' environment, made by the Python `base` where it is not there."""
    python, made = folder / "venv" / "bin" / "python", folder / "venv" / "made.json"
    torch = importlib.metadata.version("torch").partition("+")[0]
    wanted = [f"{name}=={version}" for name, version in ({"torch": torch} | REQUIREMENTS).items()]
    if not made.exists() or json.loads(made.read_text(encoding="utf-8")) != wanted:
        print("making an environment for the peers", flush=True)
        run([base, "-m", "venv", folder / "venv"])
        run([python, "-m", "pip", "install", "-q", *wanted])
        made.write_text(json.dumps(wanted), encoding="utf-8")
    return python


def model_of(folder: Path, threads: int) -> int:
    """The parameters of the random model in a folder, which is made where it is not there."""
    most = [max(case.samples for case in CASES), max(case.length for case in CASES)]
    recipe = {"sizes": SIZES, "seed": SEED, "most": most}
    known = folder / "model" / "made.json"
    if (
        known.exists()
        and (made := json.loads(known.read_text(encoding="utf-8")))
        and all(made.get(name) == value for name, value in recipe.items())
    ):
        return int(made["parameters"])
    print("making a random model", flush=True)
    job = {**recipe, "side": "build", "work": str(folder / "model")}
    report = child(Path(sys.executable), job, threads)
    known.write_text(json.dumps({**recipe, **report}), encoding="utf-8")
    return int(report["parameters"])


def our_code() -> str:
    """A hash of the package that runs, and of the comparison."""
    spec = importlib.util.find_spec("secateur")
    assert spec is not None, "this environment has the package"
    files = [*Path(str(spec.origin)).parent.rglob("*.py"), CHILD]
    text = b"".join(path.read_bytes() for path in sorted(files))
    return hashlib.sha256(text).hexdigest()[:16]


class Record:
    """The numbers so far, in a file that is whole at any time."""

    _FOUND = ("runs", "same units")

    def __init__(self, path: Path, about: dict[str, Any], *, fresh: bool) -> None:
        self._path = path
        self.numbers: dict[str, Any] = {**about, "runs": []}
        if not fresh and path.exists():
            found = read(path)
            if all(found.get(name) == about[name] for name in ("code", "threads", "model")):
                self.numbers |= {name: found[name] for name in self._FOUND if name in found}

    def has(self, **names: Any) -> bool:
        """Whether there is a run of these names."""
        return any(names.items() <= entry.items() for entry in self.numbers["runs"])

    def add(self, entry: dict[str, Any]) -> None:
        """Add a run and write all."""
        self.numbers["runs"].append(entry)
        self.write()

    def write(self) -> None:
        """Write all into the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f"{self._path.name}.part")
        part.write_text(json.dumps(self.numbers, indent=1) + "\n", encoding="utf-8")
        part.replace(self._path)


def read(path: Path) -> dict[str, Any]:
    """The numbers in a file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict) or "runs" not in found:
        raise SystemExit(f"{path} has no runs; it is not of this benchmark")
    return found


def compare(case: Case, turn: int, pythons: dict[str, Path], folder: Path, record: Record) -> None:
    """Run what is missing of one turn of a case: theirs, ours, and the model's own passes."""
    for side in case.sides:
        names = {"case": case.name, "turn": turn, "side": side}
        if record.has(**names):
            continue
        python = pythons.get(side, Path(sys.executable))
        report = child(python, jobs(case, side, folder), record.numbers["threads"])
        record.add({**names, **report})
        seconds, peak = report["seconds"], report["peak"] / 1e9
        print(f"{case.name}, turn {turn}, {side}: {seconds:.1f} s, {peak:.2f} GB", flush=True)


def without_units(record: Record) -> None:
    """Put in the place of lists of units what share of those that go is the same on both sides."""
    runs = record.numbers["runs"]
    for case in CASES:
        pair = [
            next((run for run in runs if "kept" in run and _is(run, case, side)), None)
            for side in (case.method, "ours")
        ]
        if None not in pair:
            share = same_share(*(gone(run["kept"]) for run in pair if run is not None))
            record.numbers.setdefault("same units", {})[case.name] = share
    for run in runs:
        run.pop("kept", None)
    record.write()


def _is(run: dict[str, Any], case: Case, side: str) -> bool:
    return bool(run["case"] == case.name and run["side"] == side)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See that everything is there, and run what is missing."""
    folder = options.peers.expanduser().resolve()
    if folder.is_relative_to(HERE.parent.resolve()):
        raise SystemExit(
            f"--peers {folder} is in this repository; none of the peers' code goes there"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for peer in PEERS.values():
        code_of(peer, folder)
    python = environment_of(folder, options.python)
    parameters = model_of(folder, options.threads)
    about = {
        **surroundings([{"threads": options.threads}]),
        "peers": REQUIREMENTS | {peer.folder: peer.commit for peer in PEERS.values()},
        "model": SIZES | {"parameters": parameters, "seed": SEED},
        "threads": options.threads,
        "code": our_code(),
    }
    record = Record(options.out, about, fresh=options.fresh)
    for turn in range(1, options.turns + 1):
        for case in (case for case in CASES if options.only in case.name):
            compare(case, turn, dict.fromkeys(PEERS, python), folder, record)
            without_units(record)
    return record.numbers


def main() -> int:
    """Measure or only show; 1 where a goal is not met."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    cache = Path("~/.cache/secateur-peers")
    results = HERE / "results" / "peers.json"
    parser.add_argument("--peers", type=Path, default=cache, help="folder of the peers' code")
    parser.add_argument("--out", type=Path, default=results, help="where the numbers go")
    parser.add_argument("--page", type=Path, help="page whose table is kept, such as peers.md")
    parser.add_argument("--turns", type=int, default=2, help="measure so many times")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    parser.add_argument(
        "--python", default=sys.executable, help="Python 3.10 or 3.11 for the peers"
    )
    parser.add_argument("--fresh", action="store_true", help="measure all anew")
    parser.add_argument("--show", action="store_true", help="only show what --out has")
    options = parser.parse_args()
    numbers = read(options.out) if options.show else measure(options)
    if options.page:
        keep_table(options.page, numbers)
    return 0 if show(numbers) else 1


if __name__ == "__main__":
    sys.exit(main())
