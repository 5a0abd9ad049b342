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

The floor is what a pass must multiply at one layer's memory: a layer that has no room for what is
inside it runs forward twice before it runs backward. Elementwise work, attention's products and
reading the weights come on top, on both sides.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import secateur
import secateur.data
from secateur.methods import METHODS
from secateur.pipeline import evaluate
from training_step import GOAL
from training_step import measured as step_measured
from turns import (
    RATIO,
    Clock,
    Time,
    continued,
    machine,
    neighbour,
    now,
    planned,
    since,
    spread,
)

Run = Callable[[], Time]

LENGTH, BATCH = 256, 8
LENGTHS = (128, 2048)


@dataclass(frozen=True)
class Row:
    """One line of the table: ours as a multiple of `unit`, to be at most `goal`.

    It cannot be less than `floor`, if that is known.
    """

    name: str
    unit: str
    goal: float
    ours: Run
    plain: Run
    floor: float | None = None


class Products:
    """Multiplications a token of one layer and of the head, and what passes need of them."""

    def __init__(self, model: Any, folder: str) -> None:
        axes = secateur.open_model(folder).structure.axes
        self.layers = model.config.num_hidden_layers
        linears = [one for one in model.modules() if isinstance(one, nn.Linear)]
        self.head = model.get_output_embeddings().weight.numel()
        self.layer = (sum(one.weight.numel() for one in linears) - self.head) / self.layers
        consumers = {one.consumer.module: one for one in axes if one.consumer.linear}
        shapes = [model.get_submodule(name).weight.shape for name in consumers]
        self.normal = sum(i * (i / 2 + o) for o, i in shapes) / self.layers

    @property
    def forward(self) -> float:
        """Of all layers and the head."""
        return self.layers * self.layer + self.head

    def backward(self, scored: int, above: int) -> float:
        """The way up, and down again to the lowest layer that is scored, with `above` on top.

        In multiples of forward and backward: each layer that is passed on the way down runs
        forward, and gives a gradient of its input; one that is scored those of its weights, too.
        """
        way = self.layers + 2 * (scored + above) + scored
        return (way * self.layer + 2 * self.head) / (3 * self.forward)


class Subject:
    """A model folder and tokens; the plain model is loaded once."""

    def __init__(self, folder: str, calibration: str, windows: int, work: Path) -> None:
        self.folder, self.calibration, self.work = folder, calibration, work
        self.windows = windows
        self.plain = plainly(folder)
        self.products = Products(self.plain, folder)
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

    @property
    def walk(self) -> float:
        """The layers without the head, as a multiple of a forward."""
        return self.products.layers * self.products.layer / self.products.forward

    def backward_floor(self, method: str) -> float:
        """That of gradients in the layers that a method scores."""
        layers = self.products.layers
        first, last = (round(share * layers) for share in METHODS[method].untouched)
        return self.products.backward(layers - first - last, last)

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
    ours = subject.prune(count, method="flap")
    return Row("flap", "F", 1.25, ours, plain, subject.walk)


def wanda_sp(subject: Subject) -> Row:
    """The same of another score."""
    count = subject.windows
    plain = subject.forward(subject.tokens(count))
    ours = subject.prune(count, method="wanda-sp")
    return Row("wanda-sp", "F", 1.25, ours, plain, subject.walk)


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
    return Row("perplexity, dense and cut, 128 and 2048", "the forwards", 1.3, ours, plain, 1.0)


def llm_pruner(subject: Subject) -> Row:
    """Gradients of the mean loss."""
    count = subject.windows
    ours = subject.prune(count, method="llm-pruner")
    floor = subject.backward_floor("llm-pruner")
    return Row("llm-pruner", "F+B", 1.05, ours, subject.backward(count), floor)


def per_sample(subject: Subject) -> Row:
    """Coarse and fine terms of every window: what SAAP and HyWIA ask for."""
    count = subject.windows
    ours = subject.prune(count, method="saap")
    floor = subject.backward_floor("saap")
    return Row("saap, terms of every window", "F+B", 1.4, ours, subject.backward(count), floor)


def hywia(subject: Subject) -> Row:
    """Gradients and probes; the floor is that of the gradients.

    What the probes take does not depend on the windows, so that the goal is for a number of these.
    """
    count = 32
    ours = subject.prune(count, method="hywia")
    plain = subject.forward(subject.tokens(count))
    floor = 3 * subject.backward_floor("hywia") * 7 / 8  # of the windows an eighth asks
    return Row(f"hywia with probes, {count} windows", "F", 10.0, ours, plain, floor)


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

    products = subject.products
    floor = 2 * subject.walk + products.layers * products.normal / products.forward
    return Row(f"refit, {count} windows", "F", 4.0, ours, subject.forward(tokens), floor)


def distil(subject: Subject, turns: int) -> dict[str, Any]:
    """A step of training, teacher cached: see `training_step.py`."""
    found = step_measured(
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
    floor = f"{row['floor']:.2f}" if row.get("floor") else ""
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
    measured = {
        "model": Path(options.model).name,
        "machine": machine(),
        "windows": options.windows,
    }
    found = continued(options.out, measured)
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
