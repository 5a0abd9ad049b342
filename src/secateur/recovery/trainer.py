"""The one training loop of all recoveries.

Everything that a step does follows from the seed and its number: which examples it sees, and what
dropout draws. So a run that was cut short goes on from its last checkpoint to the same weights.
Several ranks take their parts of each step (`together`), and decide the same of the same numbers.

    AdamW (no weight decay), linear warm-up, then linear decay to 0; gradients of the mean loss over
    the labelled tokens of a batch, clipped to norm 1

The held-out loss is taken before the first step and then some ten times on the way. The best state
is what stays, so that a recovery never ends worse on held-out examples than it began. Where the
loss is no better than it was, training goes back to the best state and halves its rate: a model
that a repair has brought near the best it can be takes smaller steps than one that was cut in half.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..data import Examples
from ..errors import SecateurError
from ..progress import draw, note, status, track
from .batch import TOKENS_AT_ONCE, Batch
from .earlier import MOMENTS, Check, Outcome, earlier_run
from .halves import Halves
from .objectives import Objective
from .passes import backward, loss_of
from .recompute import kept_bytes
from .saving import Saving
from .schedule import Schedule
from .together import Copies

# Steps after which the state is saved at the latest, and the largest norm of a gradient.
_SAVE_EVERY, _CLIP = 25, 1.0
# What the seeds of two ranks are apart: they draw other dropout.
_APART = 0x9E3779B97F4A7C15


class Trainer:
    """Trains parameters of `model` on the first examples of `data`; the last `held` are held out.

    `trained` says which they are, and how ranks share the work (parameters by name: each has a copy
    of the model); `device` and `autocast` (None: no) where and in what the passes run. The state is
    kept in the file `store`, if there is one, and training goes on from there if `fingerprint` is
    that of the state; one that is damaged is an error, or forgotten (`anew`).
    """

    def __init__(
        self,
        model: Any,
        trained: Copies | Mapping[str, nn.Parameter],
        data: Examples,
        held: int,
        objective: Objective,
        schedule: Schedule,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        store: Path | None = None,
        fingerprint: str = "",
        anew: bool = False,
    ) -> None:
        self._together = trained if isinstance(trained, Copies) else Copies(trained)
        self._model, self._parameters = model, self._together.parameters
        self._data, self._train = data, len(data) - held
        self._objective, self._schedule = objective, schedule
        self._device, self._autocast = device, autocast
        self._store, self._fingerprint, self._anew = store, fingerprint, anew
        self._optimizer = _optimizer(self._together, schedule)
        model.eval()  # the model's own dropout is no part of any recipe
        self._dropouts = [m for name, m in model.named_modules() if "lora_dropout" in name]
        self.halves = Halves(
            model, data.ids[:2, :3].to(device), self._in_autocast, self._together.begin
        )
        self._together.rest()
        self._saving = Saving(store, fingerprint)
        self._outcome = Outcome()
        self._best = {name: torch.empty_like(p, device="cpu") for name, p in self._named()}
        self._best_loss = math.inf
        self._at_best = False  # whether the parameters are the best ones
        self._worse = 0
        self._share = 1.0  # of the schedule's rate: halved at every way back
        self._since: list[tuple[float, int]] = []

    @property
    def steps(self) -> int:
        """How many there are."""
        return self._schedule.steps

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """What is trained, as this rank has it."""
        return tuple(self._parameters.values())

    @property
    def elements(self) -> int:
        """How many parameters are trained, on all ranks together."""
        return sum(shape.numel() for shape in self._together.shapes.values())

    def kept_bytes(self) -> float:
        """Bytes that layers keep for the way back of as much as goes through the model at once.

        Asked of one example; infinite where that is too much already.
        """
        ids, micro = self._data.ids[:1].to(self._device), self._schedule.micro
        step = self._schedule.batch * ids.numel()
        packed = max(min(TOKENS_AT_ONCE, step), ids.numel())
        at_once = micro * ids.numel() if micro else packed
        try:
            with torch.random.fork_rng(devices=self._cuda), self._dropping():
                return kept_bytes(self.halves, ids) * at_once / ids.numel()
        except torch.OutOfMemoryError:
            return math.inf

    def run(self) -> Outcome:
        """Train; the parameters hold the best state afterwards, on the first rank all of it.

        Raises:
            SecateurError: the state in the file belongs to another run, or the loss is not finite
            before anything was trained.
        """
        start = self._resume()
        started = time.monotonic() - self._outcome.seconds
        steps = range(start, self._schedule.steps)
        for step in track(steps, "training", len(steps), "step"):
            if self._outcome.stopped is not None:
                break
            self.step(step)
            self._outcome.seconds = time.monotonic() - started
            self._say()
            done = step + 1
            checked = self._schedule.checks_after(done)
            if checked and self._outcome.stopped is None:
                self._check(done)
            if checked or done % _SAVE_EVERY == 0:
                self._save()
        self._outcome.seconds = time.monotonic() - started
        for name, parameter in self._named():
            parameter.copy_(self._best[name])
        self._together.gather()
        return self._outcome

    def step(self, step: int) -> None:
        """Train on the examples of step `step` (from 0); what comes of it is in the outcome."""
        rows = self._schedule.rows(step, self._train)
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * self._share * self._schedule.factor(step)
        self._optimizer.zero_grad(set_to_none=True)
        tokens = max(self._data[rows].tokens, 1)
        losses: list[Tensor] = []
        with torch.random.fork_rng(devices=self._cuda), self._dropping():
            own = self._together.ranks.index * _APART % 2**62
            torch.manual_seed(self._schedule.seed * 1_000_003 + step + own)
            for batch in self._batches(rows):
                losses += backward(self.halves, self._objective, batch, 1 / tokens)
        total, size = self._together.step_sums(losses)
        if not math.isfinite(total) or not math.isfinite(size):
            what = "loss" if not math.isfinite(total) else "gradient"
            self._outcome.stopped = f"the {what} of step {step + 1} is NaN or infinite"
            return
        if size > _CLIP:
            parameters = self._parameters.values()
            torch.nn.utils.clip_grads_with_norm_(parameters, _CLIP, torch.tensor(size))
        self._optimizer.step()
        self._at_best = False
        self._outcome.steps = step + 1
        self._outcome.tokens += tokens
        self._since.append((total, tokens))

    def _say(self) -> None:
        """Show the last step's loss and the speed so far."""
        if self._since:
            total, tokens = self._since[-1]
            rate = self._outcome.tokens / max(self._outcome.seconds, 1e-3)
            status(f"loss {total / tokens:.3f}, {rate:,.0f} tokens/s")
            pace = self._share * self._schedule.factor(self._outcome.steps - 1)
            draw(self._outcome.steps, loss=total / tokens, rate=self._schedule.rate * pace)

    def _batches(self, rows: Int64[Tensor, " example"]) -> Iterator[Batch]:
        """What goes through the model at once on this rank, of some examples."""
        for part, counts in self._together.parts(self._data, rows, self._schedule.micro):
            yield Batch.of(self._data, part, self._device, counts=counts)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """The dropout of a recipe is there while a gradient is taken."""
        for module in self._dropouts:
            module.train()
        try:
            yield
        finally:
            for module in self._dropouts:
                module.eval()

    def loss(self, rows: Int64[Tensor, " example"]) -> float:
        """The loss per token on the examples `rows`."""
        losses: list[Tensor] = []
        for batch in self._batches(rows):
            losses += loss_of(self.halves, self._objective, batch)
        self._together.rest()
        return self._together.loss_sum(losses) / max(self._data[rows].tokens, 1)

    def _check(self, done: int) -> None:
        """Take the held-out loss; keep the state if it is the best so far."""
        held_out = self.loss(torch.arange(self._train, len(self._data)))
        trained = None
        if self._since:
            sums, counts = zip(*self._since, strict=True)
            trained = sum(sums) / sum(counts)
        self._since = []
        self._outcome.checks.append(Check(done, trained, held_out))
        draw(done, held_out_loss=held_out)
        if held_out < self._best_loss:
            self._best_loss, self._worse, self._outcome.best_step = held_out, 0, done
            for name, parameter in self._named():
                self._best[name].copy_(parameter)
            self._saving.best_changed()
            self._at_best = True
            return
        self._worse += 1
        if not math.isfinite(held_out):
            self._outcome.stopped = f"the held-out loss after step {done} is NaN or infinite"
        elif self._worse >= self._schedule.patience:
            self._outcome.stopped = f"no better held-out loss in {self._worse} checks"
        else:
            self._go_back()

    def _go_back(self) -> None:
        """Take up the best state again, at half the rate.

        The squared gradients that Adam has seen stay true; the direction does not, and what it
        builds up anew is a warm-up.
        """
        self._share /= 2
        self._at_best = True
        for name, parameter in self._named():
            parameter.copy_(self._best[name])
            moments = self._moments(name)
            if "exp_avg" in moments:
                moments["exp_avg"].zero_()

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        """What is trained, to be read and written apart from any gradient."""
        for name, parameter in self._parameters.items():
            yield name, parameter.detach()

    def _moments(self, name: str) -> dict[str, Tensor]:
        """What Adam knows of a parameter so far."""
        return dict(self._optimizer.state.get(self._parameters[name], {}))

    def _resume(self) -> int:
        """Take up the state in the file, if there is one; the number of steps done."""
        shapes, steps = self._together.shapes, self._schedule.steps
        earlier = earlier_run(self._store, self._fingerprint, shapes, steps, anew=self._anew)
        if earlier is None:
            self._check(0)
            if not math.isfinite(self._best_loss):
                raise SecateurError(
                    "The held-out loss is NaN or infinite before the first step: there is no good"
                    " state to start from.\nTry --dtype float32, or another recipe."
                )
            return 0
        part = self._together.part
        for name, parameter in self._named():
            self._best[name].copy_(part(earlier.tensors[f"best/{name}"]))
            parameter.copy_(part(earlier.tensors[f"{earlier.now}/{name}"]))
            moments = {
                key: part(earlier.tensors[f"{key}/{name}"]).to(parameter.device)
                for key in (*MOMENTS, "step")
                if f"{key}/{name}" in earlier.tensors
            }
            if moments:
                self._optimizer.state[self._parameters[name]] = moments
        self._saving.best_is(earlier.mark)
        self._at_best = earlier.now == "best"
        self._best_loss, self._worse = earlier.best_loss, earlier.worse
        self._share, self._since = earlier.share, earlier.since
        self._outcome = earlier.outcome
        note(f"going on after step {self._outcome.steps} of an earlier run")
        return self._outcome.steps

    def _save(self) -> None:
        state: dict[str, Tensor] = {}
        for name, parameter in self._named():
            if not self._at_best:
                state[f"now/{name}"] = parameter
            state |= {f"{key}/{name}": tensor for key, tensor in self._moments(name).items()}
        values = {
            **asdict(self._outcome),
            "best_loss": self._best_loss,
            "worse": self._worse,
            "share": self._share,
            "since": self._since,
            "at_best": self._at_best,
        }
        best = {f"best/{name}": tensor for name, tensor in self._best.items()}
        self._saving.save(self._together.whole(state), self._together.whole(best), values)

    @property
    def _cuda(self) -> Sequence[torch.device]:
        return [self._device] if self._device.type == "cuda" else []

    def _in_autocast(self) -> Any:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._autocast)


def _optimizer(together: Copies, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW with what is trained at one rate in one group: a kernel updates a group at once."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in together.parameters.items():
        suits = together.rate(name) if schedule.relative else 1.0
        groups.setdefault(schedule.rate * suits, []).append(parameter)
    devices = {parameter.device.type for parameter in together.parameters.values()}
    return torch.optim.AdamW(
        [{"params": params, "lr": rate, "rate": rate} for rate, params in groups.items()],
        weight_decay=0.0,
        fused=devices <= {"cpu", "cuda"},
    )
