"""What every pass costs, as a multiple of what nobody can do without: the table of docs/log.md.

    python benchmarks/passes.py MODEL --calibration c4-sample.jsonl --out results.json
    python benchmarks/passes.py MODEL --calibration c4-sample.jsonl --only flap refit --neighbour

F is a plain forward of transformers over the same tokens, F+B forward and backward with the loss on
the next token. Ours and plain run in turns in one process, so that a noisy machine does not matter;
what is timed of ours is the whole run less its start: from the first layer of the first pass to the
end. Each figure is the median of the turns, with the least and the most beside it; by processor
time, too, for a machine that does something else besides. `--neighbour`
times our side again beside a process that copies memory without end. Rows are written one by one,
and those that are there already are not run again.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import secateur
import secateur.data
from secateur.pipeline import evaluate
from training_step import FLOOR, measured
from turns import RATIO, Clock, Time, neighbour, now, planned, since, spread

Run = Callable[[], Time]

LENGTH, BATCH = 256, 8
LENGTHS = (128, 2048)


@dataclass(frozen=True)
class Row:
    """One line of the table: ours as a multiple of `unit`, which is to be at most `floor`."""

    name: str
    unit: str
    floor: float
    ours: Run
    plain: Run


class Subject:
    """A model folder and tokens; the plain model is loaded once."""

    def __init__(self, folder: str, calibration: str, windows: int, work: Path) -> None:
        self.folder, self.calibration, self.work = folder, calibration, work
        self.windows = windows
        self.plain = plainly(folder)
        self._tokens: dict[tuple[int, int], Tensor] = {}

    def tokens(self, count: int, length: int = LENGTH) -> Tensor:
        """Calibration windows [window, token]."""
        if (count, length) not in self._tokens:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
            documents = secateur.data.documents(
                self.calibration, use="calibration", seed=0, field=None, tokenizer=tokenizer
            )
            windows = secateur.data.sample_windows(
                documents, tokenizer, source=self.calibration, samples=count, length=length, seed=0
            )
            self._tokens[count, length] = windows.ids
        return self._tokens[count, length]

    def prune(self, count: int, **settings: Any) -> Run:
        """A plan by these settings."""
        tokens = self.tokens(count)
        return lambda: Clock.of(lambda clock: planned(self.folder, tokens, clock, **settings))

    def forward(self, *sets: Tensor, models: Sequence[Any] = ()) -> Run:
        """Plain forwards over windows."""

        def run() -> Time:
            started = now()
            with torch.no_grad():
                for model in models or (self.plain,):
                    for tokens in sets:
                        for batch in tokens.split(max(1, BATCH * LENGTH // tokens.shape[1])):
                            model(input_ids=batch, use_cache=False)
            return since(started)

        return run

    def backward(self, count: int) -> Run:
        """Plain forward and backward."""
        tokens = self.tokens(count)

        def run() -> Time:
            started = now()
            for batch in tokens.split(BATCH):
                self.plain(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            self.plain.zero_grad(set_to_none=True)
            return since(started)

        return run

    def pruned(self) -> Path:
        """A folder with the model cut by FLAP."""
        folder = self.work / "pruned"
        if not folder.exists():
            secateur.prune(
                self.folder,
                ratio=RATIO,
                calibration=self.tokens(16),
                evaluate="none",
                out=folder,
            )
        return folder


def plainly(folder: str | Path) -> Any:
    """The model as transformers loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def flap(subject: Subject) -> Row:
    """Walk, statistics, scores and search."""
    count = subject.windows
    plain = subject.forward(subject.tokens(count))
    return Row("flap", "F", 1.25, subject.prune(count, method="flap"), plain)


def wanda_sp(subject: Subject) -> Row:
    """The same of another score."""
    count = subject.windows
    plain = subject.forward(subject.tokens(count))
    return Row("wanda-sp", "F", 1.25, subject.prune(count, method="wanda-sp"), plain)


def perplexity(subject: Subject) -> Row:
    """Dense and cut, at both windows: four forwards are needed."""
    stream = subject.tokens(subject.windows).flatten()
    sets = [stream[: len(stream) // n * n].view(-1, n) for n in LENGTHS]
    pruned = subject.pruned()
    models = (subject.plain, plainly(pruned))

    def ours() -> Time:
        options: dict[str, Any] = {"evaluate_lengths": LENGTHS}
        one, other = (
            Clock.of(lambda clock, one=one: evaluate(one, stream[None], progress=clock, **options))
            for one in (subject.folder, pruned)
        )
        return one[0] + other[0], one[1] + other[1]

    plain = subject.forward(*sets, models=models)
    return Row("perplexity, dense and cut, 128 and 2048", "the forwards", 1.3, ours, plain)


def llm_pruner(subject: Subject) -> Row:
    """Gradients of the mean loss."""
    count = subject.windows
    ours = subject.prune(count, method="llm-pruner")
    return Row("llm-pruner", "F+B", 1.05, ours, subject.backward(count))


def per_sample(subject: Subject) -> Row:
    """Coarse and fine terms of every window: what SAAP and HyWIA ask for."""
    count = subject.windows
    ours = subject.prune(count, method="saap")
    return Row("saap, terms of every window", "F+B", 1.4, ours, subject.backward(count))


def hywia(subject: Subject) -> Row:
    """Gradients and probes, at half the windows."""
    count = subject.windows // 2
    ours = subject.prune(count, method="hywia")
    plain = subject.forward(subject.tokens(count))
    return Row(f"hywia with probes, {count} windows", "F", 10.0, ours, plain)


def refit(subject: Subject) -> Row:
    """Both streams, at twice the windows; less the passes that the plan takes."""
    count = subject.windows * 2
    tokens = subject.tokens(count)
    plan = secateur.read_plan(subject.pruned())

    def ours() -> Time:
        return Clock.of(
            lambda clock: secateur.apply(
                plan,
                subject.folder,
                calibration=tokens,
                evaluate="none",
                repair="refit",
                progress=clock,
            )
        )

    return Row(f"refit, {count} windows", "F", 4.0, ours, subject.forward(tokens))


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
        "floor": FLOOR,
        "plain_seconds": spread(seconds["plain"]),
        "seconds": spread(seconds["step"]),
        "multiple": spread(found["multiples"]),
        "processor_multiple": spread(
            [own / plain for own, plain in zip(cpu["step"], cpu["plain"], strict=True)]
        ),
    }


ROWS = {
    "flap": flap,
    "wanda-sp": wanda_sp,
    "perplexity": perplexity,
    "llm-pruner": llm_pruner,
    "saap": per_sample,
    "hywia": hywia,
    "refit": refit,
}


NAMES = (*ROWS, "distil", "starts")


def in_turns(row: Row, turns: int, beside: bool) -> dict[str, Any]:
    """Plain and ours one after the other, `turns` times."""
    row.plain()
    pairs = [(row.plain(), row.ours()) for _ in range(turns)]
    found: dict[str, Any] = {
        "name": row.name,
        "unit": row.unit,
        "floor": row.floor,
        "plain_seconds": spread([plain[0] for plain, _ in pairs]),
        "seconds": spread([ours[0] for _, ours in pairs]),
        "multiple": spread([ours[0] / plain[0] for plain, ours in pairs]),
        "processor_multiple": spread([ours[1] / plain[1] for plain, ours in pairs]),
    }
    if beside:
        with neighbour():
            found["beside_seconds"] = spread([row.ours()[0] for _ in range(turns)])
        found["beside_multiple"] = found["beside_seconds"]["median"] / found["seconds"]["median"]
    return found


def starts(model: str) -> list[dict[str, Any]]:
    """Seconds until the command line says something."""
    command = [sys.executable, "-m", "secateur"]
    helps = [_first([*command, "--help"]) for _ in range(3)]
    begins = [_first([*command, "prune", model, "--dry-run"], stderr=True) for _ in range(3)]
    return [
        {"name": "secateur --help", "unit": "s", "floor": 0.4, "seconds": spread(helps)},
        {"name": "first line of prune", "unit": "s", "floor": 3.0, "seconds": spread(begins)},
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
    beside = f"{row['beside_multiple']:.2f}" if "beside_multiple" in row else ""
    plain = f"{row['plain_seconds']['median']:.1f}" if "plain_seconds" in row else ""
    return (
        f"| {row['name']} | {row['unit']} | {value['median']:.2f} ({value['least']:.2f} to"
        f" {value['most']:.2f}) | {processor} | {row['floor']} |"
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
    transformers.logging.set_verbosity_error()
    found: dict[str, Any] = {
        "model": Path(options.model).name,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads,"
        f" {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}",
        "rows": {},
    }
    if options.out is not None and options.out.is_file():
        found = json.loads(options.out.read_text())
    print(
        "| pass | unit | multiple | by processor | at most | seconds | plain | beside a neighbour |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        subject = None
        for name in options.only:
            if name in found["rows"]:
                rows = found["rows"][name]
            elif name == "starts":
                rows = starts(options.model)
            else:
                subject = subject or Subject(
                    options.model, options.calibration, options.windows, Path(work)
                )
                if name == "distil":
                    rows = [distil(subject, options.turns)]
                else:
                    rows = [in_turns(ROWS[name](subject), options.turns, options.neighbour)]
            found["rows"][name] = rows
            for row in rows:
                print(line(row), flush=True)
            if options.out is not None:
                options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
