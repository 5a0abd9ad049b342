"""The passes that `passes.py` times: ours and plain ones over the same tokens.

To add one, write a function from a `Subject` to a `Row` and name it in `ROWS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import secateur
import secateur.data
from floors import Floors
from secateur.evaluation import window_lengths
from secateur.models import computing_dtype
from secateur.pipeline import evaluate
from turns import RATIO, Clock, Time, now, planned, since

Run = Callable[[], Time]

LENGTH, BATCH = 256, 8


@dataclass(frozen=True)
class Row:
    """One line of the table: ours as a multiple of `unit`, to be at most `goal`; see `floors`."""

    name: str
    unit: str
    goal: float
    ours: Run
    plain: Run
    floor: float


class Subject:
    """A model folder and tokens; the plain model is loaded once."""

    def __init__(self, folder: str, calibration: str, windows: int, work: Path) -> None:
        self.folder, self.calibration, self.work = folder, calibration, work
        self.windows = windows
        self.plain = plainly(folder)
        self.floors = Floors(self.plain, folder)
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
    """The model as transformers loads it, in the dtype that ours computes in."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    return model.to(computing_dtype("auto", model.dtype, model.device))


def flap(subject: Subject) -> Row:
    """Walk, statistics, scores and search."""
    count = subject.windows
    plain = subject.forward(subject.tokens(count))
    ours = subject.prune(count, method="flap")
    return Row("flap", "F", 1.25, ours, plain, subject.floors.walk)


def wanda_sp(subject: Subject) -> Row:
    """The same of another score."""
    count = subject.windows
    plain = subject.forward(subject.tokens(count))
    ours = subject.prune(count, method="wanda-sp")
    return Row("wanda-sp", "F", 1.25, ours, plain, subject.floors.walk)


def perplexity(subject: Subject) -> Row:
    """Dense and cut, at both usual windows: four forwards are needed."""
    lengths = window_lengths(secateur.open_model(subject.folder).context)
    stream = subject.tokens(subject.windows).flatten()
    sets = [stream[: len(stream) // n * n].view(-1, n) for n in lengths]
    pruned = subject.pruned()
    models = (subject.plain, plainly(pruned))

    def ours() -> Time:
        options: dict[str, Any] = {"evaluate_lengths": lengths}
        one, other = (
            Clock.of(lambda clock, one=one: evaluate(one, stream[None], progress=clock, **options))
            for one in (subject.folder, pruned)
        )
        return one[0] + other[0], one[1] + other[1]

    plain = subject.forward(*sets, models=models)
    name = f"perplexity, dense and cut, {' and '.join(map(str, lengths))}"
    return Row(name, "the forwards", 1.3, ours, plain, 1.0)


def llm_pruner(subject: Subject) -> Row:
    """Gradients of the mean loss."""
    count = subject.windows
    ours = subject.prune(count, method="llm-pruner")
    floor = subject.floors.gradients("llm-pruner")
    return Row("llm-pruner", "F+B", 1.05, ours, subject.backward(count), floor)


def per_sample(subject: Subject) -> Row:
    """Coarse and fine terms of every window: what SAAP and HyWIA ask for."""
    count = subject.windows
    ours = subject.prune(count, method="saap")
    floor = subject.floors.gradients("saap")
    return Row("saap, terms of every window", "F+B", 1.4, ours, subject.backward(count), floor)


def hywia(subject: Subject) -> Row:
    """Gradients and probes; the floor is that of the gradients.

    What the probes take does not depend on the windows, so that the goal is for a number of these.
    """
    count = 32
    ours = subject.prune(count, method="hywia")
    plain = subject.forward(subject.tokens(count))
    floor = 3 * subject.floors.gradients("hywia") * 7 / 8  # of the windows an eighth asks
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

    plain = subject.forward(tokens)
    return Row(f"refit, {count} windows", "F", 4.0, ours, plain, subject.floors.refit)


ROWS = {
    "flap": flap,
    "wanda-sp": wanda_sp,
    "perplexity": perplexity,
    "llm-pruner": llm_pruner,
    "saap": per_sample,
    "hywia": hywia,
    "refit": refit,
}
