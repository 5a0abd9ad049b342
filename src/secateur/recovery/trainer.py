"""The one training loop of all recoveries.

Everything that a step does follows from the seed and its number: which examples it sees, and what
dropout draws. So a run that was cut short goes on from its last checkpoint to the same weights.

    AdamW (no weight decay), linear warm-up, then linear decay to 0; gradients of the mean loss over
    the labelled tokens of a batch, clipped to norm 1

The held-out loss is taken before the first step and then some ten times on the way. The best state
is what stays, so that a recovery never ends worse on held-out examples than it began. Where the
loss is no better than it was, training goes back to the best state and halves its rate: a model
that a repair has brought near the best it can be takes smaller steps than one that was cut in half.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..data import Examples
from ..errors import SecateurError
from ..progress import note, status, track
from .earlier import MOMENTS, Check, Earlier, Outcome
from .objectives import Objective
from .plain_weights import relative_rate
from .state import State, damaged, read_state, write_state

CHECKS = 10


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast. `batch` examples make a step, `micro` of them at once.

    `rate` is the learning rate at its highest; with `relative` it is multiplied with what suits
    each tensor (`relative_rate`). Training stops after `patience` checks in a row without a better
    held-out loss.
    """

    steps: int
    batch: int
    micro: int
    rate: float
    relative: bool
    warmup: int
    seed: int
    patience: int = 4
    clip: float = 1.0
    save_every: int = 25

    @property
    def check_every(self) -> int:
        """Steps between two looks at the held-out loss."""
        return max(1, self.steps // CHECKS)

    def factor(self, step: int) -> float:
        """What the rate is multiplied with in step `step` (from 0)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return max(0.0, (self.steps - step) / max(self.steps - self.warmup, 1))

    def rows(self, step: int, count: int) -> Int64[Tensor, " example"]:
        """Which of `count` examples step `step` sees: each once before any comes again."""
        batch = min(self.batch, count)
        places = range(step * batch, (step + 1) * batch)
        orders = {
            epoch: torch.randperm(count, generator=_generator(self.seed, epoch))
            for epoch in {place // count for place in places}
        }
        return torch.stack([orders[place // count][place % count] for place in places])


class Trainer:
    """Trains `parameters` of `model` on the first examples of `data`; the last `held` are held out.

    `device` and `autocast` (None: no) say where and in what the passes run. The state is kept in
    the file `store`, if there is one, and training goes on from there if `fingerprint` is that of
    the state; one that is damaged is an error, or forgotten (`anew`).
    """

    def __init__(
        self,
        model: Any,
        parameters: Mapping[str, nn.Parameter],
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
        self._model, self._parameters = model, dict(parameters)
        self._data, self._train = data, len(data) - held
        self._objective, self._schedule = objective, schedule
        self._device, self._autocast = device, autocast
        self._store, self._fingerprint, self._anew = store, fingerprint, anew
        rates = {
            name: schedule.rate * (relative_rate(parameter) if schedule.relative else 1.0)
            for name, parameter in self._parameters.items()
        }
        groups = [{"params": [p], "lr": rates[name]} for name, p in self._parameters.items()]
        self._rates = list(rates.values())
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self._outcome = Outcome()
        self._best = self._copy()
        self._best_loss = math.inf
        self._worse = 0
        self._share = 1.0  # of the schedule's rate: halved at every way back
        self._since: list[tuple[float, int]] = []

    def run(self) -> Outcome:
        """Train; the parameters hold the best state afterwards.

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
            self._step(step)
            self._outcome.seconds = time.monotonic() - started
            self._say()
            done = step + 1
            checked = done % self._schedule.check_every == 0 or done == self._schedule.steps
            if checked and self._outcome.stopped is None:
                self._check(done)
            if checked or done % self._schedule.save_every == 0:
                self._save()
        self._outcome.seconds = time.monotonic() - started
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._best[name])
        return self._outcome

    def _step(self, step: int) -> None:
        rows = self._schedule.rows(step, self._train)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._share * self._schedule.factor(step)
        self._model.eval()  # the model's own dropout is no part of any recipe
        for name, module in self._model.named_modules():
            if "lora_dropout" in name:
                module.train()
        self._optimizer.zero_grad(set_to_none=True)
        total, tokens = 0.0, max(self._data[rows].tokens, 1)
        with torch.random.fork_rng(devices=self._cuda):
            torch.manual_seed(self._schedule.seed * 1_000_003 + step)
            for part in rows.split(self._schedule.micro):
                loss = self._loss(part)
                (loss / tokens).backward()
                total += float(loss.detach())
        parameters = list(self._parameters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._schedule.clip))
        if not math.isfinite(total) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(total) else "gradient"
            self._outcome.stopped = f"the {what} of step {step + 1} is NaN or infinite"
            return
        self._optimizer.step()
        self._outcome.steps = step + 1
        self._outcome.tokens += tokens
        self._since.append((total, tokens))

    def _say(self) -> None:
        """Show the last step's loss and the speed so far."""
        if self._since:
            total, tokens = self._since[-1]
            rate = self._outcome.tokens / max(self._outcome.seconds, 1e-3)
            status(f"loss {total / tokens:.3f}, {rate:,.0f} tokens/s")

    def _loss(self, rows: Int64[Tensor, " example"]) -> Tensor:
        part = self._data[rows]
        ids, labels = part.ids.to(self._device), part.labels.to(self._device)
        with self._in_autocast():
            logits = self._model(input_ids=ids, use_cache=False).logits
        return self._objective(logits, labels, rows, ids)

    def _check(self, done: int) -> None:
        """Take the held-out loss; keep the state if it is the best so far."""
        self._model.eval()
        rows = torch.arange(self._train, len(self._data))
        with torch.no_grad():
            losses = [float(self._loss(part)) for part in rows.split(self._schedule.micro)]
        held_out = sum(losses) / max(self._data[rows].tokens, 1)
        trained = None
        if self._since:
            sums, counts = zip(*self._since, strict=True)
            trained = sum(sums) / sum(counts)
        self._since = []
        self._outcome.checks.append(Check(done, trained, held_out))
        if held_out < self._best_loss:
            self._best_loss, self._best, self._worse = held_out, self._copy(), 0
            self._outcome.best_step = done
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
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._best[name])
                moments = self._optimizer.state.get(parameter, {})
                if "exp_avg" in moments:
                    moments["exp_avg"].zero_()

    def _resume(self) -> int:
        """Take up the state in the file, if there is one; the number of steps done."""
        state = read_state(self._store, self._fingerprint) if self._store else None
        earlier = None if state is None else self._checked(state)
        if earlier is None:
            self._check(0)
            if not math.isfinite(self._best_loss):
                raise SecateurError(
                    "The held-out loss is NaN or infinite before the first step: there is no good"
                    " state to start from.\nTry --dtype float32, or another recipe."
                )
            return 0
        tensors = earlier.tensors
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"now/{name}"])
                moments = {
                    key: tensors[f"{key}/{name}"].to(parameter.device)
                    for key in MOMENTS
                    if f"{key}/{name}" in tensors
                }
                if moments:
                    step = tensors[f"step/{name}"]
                    self._optimizer.state[parameter] = {"step": step, **moments}
        self._best = {name: tensors[f"best/{name}"] for name in self._parameters}
        self._best_loss, self._worse = earlier.best_loss, earlier.worse
        self._share, self._since = earlier.share, earlier.since
        self._outcome = earlier.outcome
        note(f"going on after step {self._outcome.steps} of an earlier run")
        return self._outcome.steps

    def _checked(self, state: State) -> Earlier | None:
        """What the state holds; None if it is damaged and is to be forgotten."""
        assert self._store is not None, "a state comes from a file"
        try:
            return Earlier.of(state, self._parameters, self._schedule.steps)
        except (KeyError, TypeError, ValueError) as error:
            if not self._anew:
                raise damaged(self._store) from error
            self._store.unlink()
            return None

    def _save(self) -> None:
        if self._store is None:
            return
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"now/{name}"] = parameter.detach()
            tensors[f"best/{name}"] = self._best[name]
            moments = self._optimizer.state.get(parameter, {})
            for key in (*MOMENTS, "step"):
                if key in moments:
                    tensors[f"{key}/{name}"] = moments[key]
        values = {
            **asdict(self._outcome),
            "best_loss": self._best_loss,
            "worse": self._worse,
            "share": self._share,
            "since": self._since,
        }
        try:
            write_state(self._store, State(tensors, values), self._fingerprint)
        except SecateurError as error:  # a full disk, say: what is trained may fit elsewhere
            note(f"{error} Training goes on; cut short, it begins anew.")
            self._store = None

    def _copy(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().clone() for name, p in self._parameters.items()}

    @property
    def _cuda(self) -> Sequence[torch.device]:
        return [self._device] if self._device.type == "cuda" else []

    def _in_autocast(self) -> Any:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._autocast)


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
