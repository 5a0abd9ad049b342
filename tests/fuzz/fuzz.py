"""Damaged inputs by the thousand, each of which must work or be refused in our words.

    python tests/fuzz/fuzz.py --count 20000 --seed 0
    python tests/fuzz/fuzz.py --seed 0 --only 1234          # one case again, with its traceback

A case is one damaged file, option or argument, drawn by the seed and its number alone. What is
right: success, an exit code of 0 or 2, or a `SecateurError`. A finding is any other exception, a
line that says that there is a bug, control characters on the screen, more than a few seconds or a
gigabyte.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

# Everything of the package before conftest, whose hook checks types where users have no checks.
from fuzz_cases import KINDS, Case, World, make_case

import secateur
import secateur.cli.main
import secateur.pipeline
import secateur.recovery
import secateur.report

SECONDS, GIB = 6.0, 1.0
_SOURCES = str(Path(secateur.__file__).parent)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class TooSlow(BaseException):
    """More processor time than a case may take."""


@dataclass(frozen=True)
class Finding:
    """What went wrong in case `number`: `where` is the last line of ours that ran."""

    number: int
    what: str
    error: str
    where: str
    details: str = ""


def examine(number: int, case: Case) -> Finding | None:
    """Run one case."""
    before, started = _peak(), time.process_time()
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    try:
        with _deadline(), contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            code = case.attempt()
    except secateur.SecateurError as error:
        return _said(number, case, str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        return Finding(number, case.what, _named(error), _where(error), traceback.format_exc())
    said = screen.buffer.getvalue().decode()  # type: ignore[attr-defined]
    if isinstance(code, int) and code not in (0, 2):
        return Finding(number, case.what, f"exit code {code}: {said[-400:]}", _bug_at(said))
    if "This is a bug" in said or "Traceback" in said:
        return Finding(number, case.what, said[-400:], _bug_at(said))
    grown, spent = _peak() - before, time.process_time() - started
    if grown > GIB or spent > SECONDS:
        return Finding(number, case.what, f"{spent:.1f} s, {grown:.1f} GiB more", case.what[:40])
    return _said(number, case, said)


def _said(number: int, case: Case, said: str) -> Finding | None:
    found = _CONTROL.search(said)
    if found is None:
        return None
    around = said[max(0, found.start() - 60) : found.end() + 40]
    return Finding(number, case.what, f"control character in {around!r}", "the screen")


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _where(error: BaseException) -> str:
    """The last line of ours, and what it called."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_SOURCES)]
    last = ours[-1] if ours else frames[-1]
    return f"{type(error).__name__} {last.filename.removeprefix(_SOURCES)}:{last.lineno}"


def _bug_at(said: str) -> str:
    ours = re.findall(rf'File "{re.escape(_SOURCES)}([^"]+)", line (\d+)', said)
    kind = re.search(r"bug in secateur: (\w+)", said)
    return f"{kind[1] if kind else ''} {':'.join(ours[-1])}" if ours else said[-80:]


def _peak() -> float:
    """The most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlow

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def fuzz(numbers: range, seed: int, kind: str | None = None) -> Iterator[Finding]:
    """The findings among the cases of these numbers."""
    with tempfile.TemporaryDirectory() as place:
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            (Path(place) / "world").mkdir()
            world = World(Path(place) / "world")
        for number in numbers:
            own = Path(place) / "case"
            own.mkdir()
            case = make_case(world, own, random.Random(f"{seed}-{number}"), kind)
            found = examine(number, case)
            if found is not None:
                yield found
            shutil.rmtree(own, ignore_errors=True)


def main() -> int:
    """Print each new kind of finding, and how many there were."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--kind", choices=list(KINDS))
    parser.add_argument("--report", type=Path, help="all findings as JSON")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    here = Path(tempfile.mkdtemp()) / "a" / "b" / "c"
    here.mkdir(parents=True)
    os.chdir(here)
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    numbers = range(given.start, given.start + given.count)
    if given.only is not None:
        numbers = range(given.only, given.only + 1)
    seen: Counter[str] = Counter()
    findings = []
    started = time.monotonic()
    for found in fuzz(numbers, given.seed, given.kind):
        findings.append(found)
        seen[found.where] += 1
        if seen[found.where] == 1:
            print(f"{found.number}: {found.what!a}\n    {found.error!a}\n    {found.where!a}")
        if given.only is not None:
            print(found.details.encode("ascii", "backslashreplace").decode())
        sys.stdout.flush()
    if given.report:
        given.report.write_text(json.dumps([asdict(one) for one in findings], indent=1))
    for where, count in seen.most_common():
        print(f"{count:6} {where!a}")
    spent = time.monotonic() - started
    print(f"{len(findings)} findings of {len(seen)} kinds in {len(numbers)} cases, {spent:.0f} s")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
