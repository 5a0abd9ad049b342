"""One recovery on its way: data -> teacher -> train -> merge -> evaluate -> write."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import OnDemand, Packed
from ..config import READING, RecoverConfig
from ..data import Examples
from ..errors import SecateurError
from ..evaluation import Perplexity
from ..export import (
    Form,
    copy_companions,
    packed_form,
    pruned_form,
    with_around,
    write_model,
)
from ..models import OpenModel, StreamedModel, load, open_model, resolve_device
from ..progress import Progress
from ..recovery import (
    STATE_FORMAT,
    CachedDistillation,
    FullDistillation,
    Groupwise,
    Lora,
    Objective,
    Outcome,
    Trainer,
    forget_other,
    next_token,
    read_state,
)
from ..stats import Walk
from ..structure import Plan
from ..surgery import PrunedWeights
from .checks import (
    check_space,
    idle_recovery_settings,
    reading_notes,
    tokenizer_class,
    tokenizer_to_write,
    vocabulary,
)
from .held_out import HeldOut, compared, streamed
from .look import bytes_before, read_plan
from .stages import hidden_bytes, window_length
from .stock import form_facts
from .trainable import adaptable, make_trained, trained_tensors
from .training_data import (
    FEW_TOKENS,
    TrainingData,
    no_dense_model,
    read_data,
    teacher_reading,
    with_target,
)
from .write_recovery import copy_history, write_recovery

# Settings that do not decide what the trained weights are, once data and models are known.
_NOT_IN_WEIGHTS = (
    "data",
    "device",
    "evaluate",
    "evaluate_tokens",
    "hidden_gib",
    "model",
    "teacher",
    *READING,
)
_AT_ONCE = 8  # windows in a pass of the teacher or of an evaluation


@dataclass(frozen=True)
class Recovery:
    """What a recovery made: the settings in force, the numbers, and where the folder is."""

    config: RecoverConfig
    numbers: Mapping[str, Any]
    seconds: float
    tokens_per_second: float
    notes: tuple[str, ...]
    out: Path

    def load(self) -> Any:
        """The recovered model, ready for `generate`."""
        return load(self.out)

    def to_json(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return {
            "out": str(self.out),
            "settings": self.config.model_dump(),
            "results": dict(self.numbers),
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "notes": list(self.notes),
        }


class RecoveryRun:
    """One recovery on its way."""

    def __init__(
        self,
        config: RecoverConfig,
        out: Path,
        progress: Progress,
        texts: Mapping[str, Any] | None = None,
    ) -> None:
        self._started = time.monotonic()
        self._out, self._progress = out, progress
        self._texts = texts or {}
        self.name = config.model
        self._notes: list[str] = []
        self.opened = open_model(config.model, **config.reading)
        for message in reading_notes(self.opened, config):
            self._note(message)
        if self.opened.folder is None:
            raise SecateurError("Recovery reads a folder; write the live model to one first.")
        for message in self.opened.notes:
            self._note(message)
        named = config.teacher is not None
        config = with_target(config, self.opened.folder, self._note)
        self.config = config.model_copy(update={"device": str(resolve_device(config.device))})
        self._teacher = self._opened_teacher(named=named)
        self._linears = adaptable(self.opened, self.config, self._note)
        for message in idle_recovery_settings(self.config):
            self._note(message)
        if self.opened.packed and self.config.trained != "groupwise":
            self._note(
                "the weights are in few bits, and are written in floating point: only"
                " --train groupwise (or --with groupwise) writes few bits"
            )
        self._device = torch.device(self.config.device)
        bf16 = config.dtype == "bfloat16" or (
            config.dtype == "auto" and self._device.type == "cuda"
        )
        self._autocast = torch.bfloat16 if bf16 else None

    @property
    def read(self) -> tuple[OpenModel | str | None, ...]:
        """The models and texts that are read."""
        teacher = self._teacher or self.config.teacher  # it may write the text and teach nothing
        return self.opened, teacher, self.config.data, self.config.evaluate

    def carry_out(self, folder: Path, store: Path, force: bool, keep_adapter: bool) -> Recovery:
        """All stages; the state of the training is kept in the file `store`.

        `force` begins anew where an unfinished training was another one.
        """
        config = self.config
        data = read_data(self.opened, config, self._note, self._progress, self._texts)
        if data.begin.mode != "given":
            config = config.model_copy(update={"bos": data.begin.mode})
            self.config = config
        examples = data.examples
        if data.trained_tokens < FEW_TOKENS:
            self._note(
                f"{data.trained_tokens:,} tokens to train on are few (under {FEW_TOKENS:,}): what"
                " is gained may not hold on other text"
            )
        fingerprint = self._fingerprint(data)
        if force:
            forget_other(store, fingerprint)
        read_state(store, fingerprint)  # of another run: say so before the long work
        text = data.text
        if text is not None and not text.lengths:
            what = "too little text" if len(text.text.ids) else "instructions alone, and no text"
            self._note(f"there is {what} to take perplexity on; name one: --evaluate FILE.txt")
        before = self._perplexities(text, self._streamed(), "before")
        objective = self._objective(examples)
        model = self._model()
        trained = make_trained(model, self.opened, config, self._linears)
        schedule = config.schedule(len(examples) - data.held)
        outcome = Trainer(
            model,
            trained.parameters,
            examples,
            data.held,
            objective,
            schedule,
            device=self._device,
            autocast=self._autocast,
            store=store,
            fingerprint=fingerprint,
            anew=force,
            progress=self._progress,
        ).run()
        self._explain(outcome, schedule.steps)
        packed = trained.packed() if isinstance(trained, Groupwise) else None
        parameters = dict(trained.parameters)
        form = self._form(trained_tensors(trained, self.opened), own=packed is not None)
        if keep_adapter and isinstance(trained, Lora):
            trained.save(folder / "adapter")
        del model, objective, trained  # their memory goes to the passes that follow
        cut = streamed(form, self.opened, self._streamed().dtype, self._device)
        after = self._perplexities(text, cut, "after")
        numbers = self._numbers(data, outcome, compared(before, after), parameters)
        self._write(folder, form, packed, numbers, data)
        return Recovery(
            self.config.model_copy(update={"model": self.name}),
            numbers,
            time.monotonic() - self._started,
            outcome.tokens / max(outcome.seconds, 1e-9),
            tuple(self._notes),
            self._out,
        )

    def _note(self, message: str) -> None:
        self._notes.append(message)
        self._progress.note(message)

    def _streamed(self) -> StreamedModel:
        return self.opened.streamed(device=self.config.device, dtype=self.config.dtype)

    def _perplexities(
        self, text: HeldOut | None, source: StreamedModel, when: str
    ) -> list[Perplexity]:
        if text is None:
            return []
        limit = hidden_bytes(self.config.hidden_gib)
        return text.perplexities(source, _AT_ONCE, self._progress, when, limit=limit)

    def _opened_teacher(self, *, named: bool) -> OpenModel | None:
        if self.config.teacher is None or not self.config.distils:
            return None
        try:
            teacher = open_model(self.config.teacher, **teacher_reading(self.config, self.opened))
        except SecateurError as error:
            if named:
                raise
            why = f"{self.config.teacher}, which run.toml names, cannot be opened from here"
            raise no_dense_model(self.config, why) from error
        for message in teacher.notes:
            self._note(f"the dense model: {message}")
        plan = self.opened.folder / "plan.json" if self.opened.folder else None
        # run.toml has the path as it was typed, and something else may stand there by now
        known = read_plan(plan).weights if not named and plan and plan.is_file() else ""
        if known not in ("", teacher.structure.weights):
            self._note(
                f"{self.config.teacher}, which run.toml names, has other weights than the plan was"
                " made for; if it is not the model that was pruned, type --teacher MODEL"
            )
        length = window_length(self.config.length, self.opened)
        if teacher.context < length:
            raise SecateurError(
                f"The teacher {self.config.teacher} reads {teacher.context} tokens at once, and"
                f" examples have {length}.\nType --length {teacher.context} or less."
            )
        theirs, ours = vocabulary(teacher), vocabulary(self.opened)
        if theirs != ours:
            raise SecateurError(
                f"The teacher {self.config.teacher} has {theirs:,} tokens, the model {ours:,}: they"
                " do not share a vocabulary.\nName another: --teacher MODEL"
            )
        return teacher

    def _objective(self, examples: Examples) -> Objective:
        """What the student is trained towards; a cached teacher has run when this is done."""
        if not self.config.distils:
            return next_token
        teacher = self._teacher
        assert teacher is not None, "a distillation has one"
        if self.config.top_k == 0:
            dtype = self._autocast or torch.float32
            return FullDistillation(teacher.whole(dtype).to(self._device))
        limit = hidden_bytes(self.config.hidden_gib) // 2  # the states and the cache share it
        source = teacher.streamed(device=self.config.device, dtype=self.config.dtype)
        walk = Walk(source, examples.ids, batch=_AT_ONCE, limit=limit)
        return CachedDistillation(
            walk, min(self.config.top_k, vocabulary(teacher) - 1), progress=self._progress
        )

    def _model(self) -> Any:
        """The model in memory, whole: fp32 on a CPU, bf16 where the passes are (trained: fp32)."""
        half = self._autocast is not None and self._device.type != "cpu"
        return self.opened.whole(torch.bfloat16 if half else torch.float32).to(self._device)

    def _form(self, tensors: Mapping[str, Tensor], *, own: bool) -> Form:
        """The folder's form with the trained tensors in place."""
        opened = self.opened
        structure = opened.structures
        plan = Plan({}, structure.architecture, structure.weights)
        known = OnDemand((n for n in tensors if n in opened.weights.specs), tensors.__getitem__)
        weights = PrunedWeights(opened.weights, structure, plan, replaced=known)
        form = pruned_form(
            opened.family, opened.raw_config, opened.config, structure, plan, weights, own=own
        )
        return with_around(form, opened, self._note)

    def _fingerprint(self, data: TrainingData) -> str:
        """Of everything that decides the trained weights."""
        settings = self.config.model_dump()
        for name in _NOT_IN_WEIGHTS:
            settings.pop(name)
        parts = [
            STATE_FORMAT,
            json.dumps(settings, sort_keys=True),
            str(self._autocast),
            data.examples.sha256,
            self.opened.structure.architecture,
            self.opened.structure.weights,
            *([self._teacher.structure.weights] if self._teacher is not None else []),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _explain(self, outcome: Outcome, steps: int) -> None:
        if outcome.stopped is not None:
            self._note(
                f"training stopped after step {outcome.steps} of {steps}: {outcome.stopped}; the"
                f" state after step {outcome.best_step} is kept"
            )
        elif outcome.best_step == 0:
            self._note("nothing was gained on held-out examples: the weights are as they were")
        if outcome.overfits:
            self._note(
                "the loss fell on the training data and rose on held-out examples: more data, or"
                " fewer steps, would serve better"
            )

    def _numbers(
        self,
        data: TrainingData,
        outcome: Outcome,
        perplexity: list[dict[str, Any]],
        parameters: Mapping[str, nn.Parameter],
    ) -> dict[str, Any]:
        specs = self.opened.weights.specs.values()
        return {
            "trained": self.config.trained,
            "trained_parameters": sum(p.numel() for p in parameters.values()),
            "parameters": sum(spec.elements for spec in specs),
            "data": {
                "source": data.source,
                "examples": len(data.examples) - data.held,
                "held_out": data.held,
                "tokens": data.trained_tokens,
                "sha256": data.examples.sha256,
            },
            "steps": outcome.steps,
            "best_step": outcome.best_step,
            "checks": [
                {key: value for key, value in asdict(check).items() if value is not None}
                for check in outcome.checks
            ],
            "perplexity": perplexity,
            "evaluation": {"text": data.text.name if data.text else "none"},
            "bos": data.begin.to_json(),
        }

    def _write(
        self,
        folder: Path,
        form: Form,
        packed: Mapping[str, Packed] | None,
        numbers: dict[str, Any],
        data: TrainingData,
    ) -> None:
        stored = form if packed is None else packed_form(form, packed)
        check_space(folder, stored)
        size = write_model(folder, stored)
        numbers["bytes"] = {"before": bytes_before(self.opened), "after": size}
        numbers["form"] = form_facts(stored)
        copy_companions(
            folder,
            self.opened.companions,
            tokenizer=tokenizer_to_write(self.opened, None, self._note),
            model=None,
            adapted=self.opened.writes_tokenizer,
            read_as=tokenizer_class(self.opened, stored),
            note=self._note,
        )
        copy_history(folder, self.opened)
        config = self.config.model_copy(update={"model": self.name})
        write_recovery(folder, self.opened, config, numbers, stored)
