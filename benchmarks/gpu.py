"""What the passes cost on a GPU, on a random model of the shape of an 8B Llama.

    python benchmarks/gpu.py --work DIR --out benchmarks/results/gpu-NAME.json
    python benchmarks/gpu.py --work DIR --only flap refit --turns 3
    python benchmarks/gpu.py --work DIR --layers 4 --hidden 64 --vocabulary 500 --windows 8 \
        --length 64 --steps 3                               # a trial, on a CPU too

The script writes the model itself, one random shard a layer, bf16: 32 layers of 4096, MLP 14336,
grouped queries 32/8, vocabulary 128256, 16 GB in DIR. Calibration is 128 windows of 2048 random
tokens, for LLM-Pruner 10 of 64 (its own recipe), for the 100 steps of distil as many of 256 as they
take. Rows are written one by one, and those that are there already are not run again.

    seconds    from the first layer of the first pass to the end; the start is left out
    peak       torch.cuda.max_memory_allocated, weights that stay (--resident) among it
    F          a plain forward of transformers over the same tokens, in turns with ours, where the
               model fits beside 8 GiB; it leaves the GPU while ours runs
    share      of the card's peak: floating-point operations that are needed whoever does it, over
               seconds times peak. A forward needs 2 a weight and token, and attention's products;
               a backward twice that. What is run twice to save memory counts once. Of hywia the
               probes are not counted, of refit the solves: their shares are lower bounds.
               Peaks are the makers' figures for dense bf16; --peak for other cards.

llm-pruner runs with --resident no, for it is to be small; the others with --resident as given.

Expected on an H100: flap <= 60 s, llm-pruner <= 90 s at < 12 GB, hywia <= 6 min, refit <= 3 min.
These are goals. No GPU was at hand when this was written: none of them was measured.
"""

import argparse
import gc
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import secateur
from random_llama import Shape, write_model
from secateur.device_memory import free_bytes
from secateur.models import resolve_device
from secateur.progress import Quiet
from turns import RATIO, Clock, continued, now, planned, since, spread

OF_STEPS, BATCH = 256, 16  # tokens of an example of distil, and examples of a step
# Makers' figures for dense bf16 with fp32 sums, in TFLOP/s; the longest name that fits is the card.
PEAKS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "GH200": 989,
    "B200": 2250,
    "A100": 312,
    "A10": 125,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


@dataclass(frozen=True)
class Row:
    """Something to measure: ours, the tokens of its plain forward, and operations it needs."""

    ours: Callable[[Quiet], Any]
    tokens: Tensor
    needed: float
    resident: str


class Subject:
    """The model folder, the tokens, and what is made of them."""

    def __init__(self, options: argparse.Namespace, shape: Shape, device: torch.device) -> None:
        self.options, self.shape, self.device = options, shape, device
        self.folder, self.work = str(options.work / "model"), options.work
        self._plain: Any = None

    def tokens(self, count: int, length: int) -> Tensor:
        """Random windows [window, token]."""
        generator = torch.Generator().manual_seed(count)
        return torch.randint(2, self.shape.vocabulary, (count, length), generator=generator)

    @property
    def calibration(self) -> Tensor:
        """What all but LLM-Pruner's recipe sees."""
        return self.tokens(self.options.windows, self.options.length)

    def machine(self, resident: str | None = None) -> dict[str, Any]:
        """Where things run."""
        return {
            "device": str(self.device),
            "hidden_gib": self.options.hidden_gib,
            "device_gib": self.options.device_gib,
            "resident": resident or self.options.resident,
        }

    def plan(self, tokens: Tensor, method: str, needed: float, resident: str | None = None) -> Row:
        """A method's plan, without its repair."""
        settings = {**self.machine(resident), "method": method}

        def ours(clock: Quiet) -> None:
            planned(self.folder, tokens, clock, **settings)

        return Row(ours, tokens, needed, settings["resident"])

    def pruned(self) -> Path:
        """A folder with the model cut by FLAP."""
        folder: Path = self.work / "pruned"
        if not folder.exists():
            secateur.prune(
                self.folder,
                ratio=RATIO,
                calibration=self.tokens(8, OF_STEPS),
                evaluate="none",
                out=folder,
                **self.machine(),
            )
        return folder

    def forward(self, tokens: Tensor) -> float | None:
        """Seconds of a plain forward, head and all; None where the model does not fit."""
        on_gpu = self.device.type == "cuda"
        if on_gpu and self.shape.bytes + 8 * 2**30 > free_bytes(self.device):
            return None
        if self._plain is None:
            found: Any = transformers.AutoModelForCausalLM
            self._plain = found.from_pretrained(self.folder, dtype=torch.bfloat16).eval()
        self._plain.to(self.device)
        batches = tokens.split(max(1, 8192 // tokens.shape[1]))
        with torch.no_grad():
            self._plain(input_ids=batches[0].to(self.device), use_cache=False)
            _wait(self.device)
            began = now()
            for batch in batches:
                self._plain(input_ids=batch.to(self.device), use_cache=False)
            _wait(self.device)
        spent = since(began)[0]
        self._plain.to("cpu")
        _empty(self.device)
        return spent


def flap(subject: Subject) -> Row:
    """Walk, statistics, scores and search."""
    tokens = subject.calibration
    return subject.plan(tokens, "flap", subject.shape.forward(tokens, head=False))


def llm_pruner(subject: Subject) -> Row:
    """Gradients by LLM-Pruner's own recipe."""
    tokens = subject.tokens(10, 64)
    return subject.plan(tokens, "llm-pruner", 3 * subject.shape.forward(tokens, head=True), "no")


def hywia(subject: Subject) -> Row:
    """Gradients and probes."""
    tokens = subject.calibration
    return subject.plan(tokens, "hywia", 3 * subject.shape.forward(tokens, head=True))


def saap(subject: Subject) -> Row:
    """Terms of every window."""
    tokens = subject.calibration
    return subject.plan(tokens, "saap", 3 * subject.shape.forward(tokens, head=True))


def refit(subject: Subject) -> Row:
    """Both streams, for a plan that is there already."""
    tokens, shape = subject.calibration, subject.shape
    plan = secateur.read_plan(subject.pruned())

    def ours(clock: Quiet) -> None:
        secateur.apply(
            plan,
            subject.folder,
            calibration=tokens,
            evaluate="none",
            repair="refit",
            progress=clock,
            **subject.machine(),
        )

    needed = 2 * shape.forward(tokens, head=False) + shape.normal(tokens)
    return Row(ours, tokens, needed, subject.options.resident)


def distil(subject: Subject) -> Row:
    """Steps of training with the teacher's pass before them, and the folder written after."""
    steps, shape = subject.options.steps, subject.shape
    tokens, pruned = subject.tokens(steps * BATCH, OF_STEPS), subject.pruned()

    def ours(clock: Quiet) -> None:
        secateur.recover(
            pruned,
            recipe="distil",
            teacher=subject.folder,
            data=tokens,
            steps=steps,
            batch=BATCH,
            patience=steps,
            evaluate="none",
            out=subject.work / "better",
            force=True,
            progress=clock,
            **subject.machine(),
        )

    # the teacher; the student and the gradients of its inputs; those of the consumers alone
    whole = (1 + 2 * (1 - RATIO)) * shape.forward(tokens, head=True)
    needed = whole + (1 - RATIO) * 2 * tokens.numel() * shape.consumers
    return Row(ours, tokens, needed, subject.options.resident)


ROWS = {
    "flap": flap,
    "llm-pruner": llm_pruner,
    "hywia": hywia,
    "saap": saap,
    "refit": refit,
    "distil": distil,
}


def row_of(subject: Subject, name: str, peak: float | None) -> dict[str, Any]:
    """A row: plain and ours in turns."""
    row = ROWS[name](subject)
    plain, ours, memory = [], [], 0
    for _ in range(subject.options.turns):
        plain.append(subject.forward(row.tokens))
        _empty(subject.device)
        ours.append(Clock.of(lambda clock: _until_done(row, clock, subject.device))[0])
        if subject.device.type == "cuda":
            memory = max(memory, torch.cuda.max_memory_allocated(subject.device))
    seconds = spread(ours)
    found: dict[str, Any] = {
        "windows": list(row.tokens.shape),
        "resident": row.resident,
        "seconds": seconds,
        "peak_memory_gb": memory / 1e9 if subject.device.type == "cuda" else None,
        "needed_tflop": row.needed / 1e12,
    }
    forwards = [spent for spent in plain if spent is not None]
    if len(forwards) == len(ours):
        found["plain_forward_seconds"] = spread(forwards)
        found["multiple_of_forward"] = spread(
            [one / other for one, other in zip(ours, forwards, strict=True)]
        )
    if peak is not None:
        found["share_of_peak"] = row.needed / (seconds["median"] * peak * 1e12)
    return found


def _until_done(row: Row, clock: Quiet, device: torch.device) -> None:
    row.ours(clock)
    _wait(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _empty(device: torch.device) -> None:
    """Nothing of what ran before is left on the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_of(card: str) -> float | None:
    """TFLOP/s of a card by its name, if it is known."""
    fitting = [name for name in PEAKS if name in card]
    return float(PEAKS[max(fitting, key=len)]) if fitting else None


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    memory, share = row["peak_memory_gb"], row.get("share_of_peak")
    multiple = row.get("multiple_of_forward")
    cells = (
        name,
        "x".join(map(str, row["windows"])),
        f"{row['seconds']['median']:.1f}",
        "" if memory is None else f"{memory:.1f}",
        "" if multiple is None else f"{multiple['median']:.2f}",
        "" if share is None else f"{share:.1%}",
    )
    return f"| {' | '.join(cells)} |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="where models are written")
    parser.add_argument("--out", type=Path, help="results as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--peak", type=float, help="TFLOP/s in dense bf16")
    parser.add_argument("--resident", default="auto")
    parser.add_argument("--device-gib", type=float)
    parser.add_argument("--hidden-gib", type=float, default=80.0)
    for name in ("layers", "hidden", "mlp", "heads", "kv-heads", "vocabulary"):
        default = getattr(Shape, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def main() -> None:
    options = _options()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sizes = (options.layers, options.hidden, options.mlp, options.heads, options.kv_heads)
    shape = Shape(*sizes, options.vocabulary).filled()
    device = resolve_device(options.device)
    on_gpu = device.type == "cuda"
    card = torch.cuda.get_device_name(device) if on_gpu else platform.machine()
    peak = options.peak or (peak_of(card) if on_gpu else None)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    measured = {
        "card": card,
        "versions": versions,
        "peak_tflops": peak,
        "model": {**vars(shape), "gb": shape.bytes / 1e9},
    }
    found = continued(options.out, measured)
    write_model(options.work / "model", shape, device)
    subject = Subject(options, shape, device)
    print(f"{card}, {versions}\n")
    print("| pass | windows | seconds | peak, GB | multiple of F | share of peak |")
    print("|---|---|---|---|---|---|")
    for name in options.only:
        if name not in found["rows"]:
            found["rows"][name] = row_of(subject, name, peak)
        print(line(name, found["rows"][name]), flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
