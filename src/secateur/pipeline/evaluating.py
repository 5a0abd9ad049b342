"""How good a model is: perplexity, agreement with the dense model, tasks, what it writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from .. import evaluation
from ..arguments import (
    a_count,
    a_device,
    a_dtype,
    a_flag,
    a_model,
    a_number,
    a_progress,
    a_text,
    a_tokenizer,
    a_whole,
    a_word,
    optional,
    public,
    renamed,
    some,
)
from ..checkpoint import Store
from ..data import Bos, Text, given_windows
from ..errors import SecateurError
from ..evaluation import TaskResult, asked_tasks, window_lengths
from ..models import OpenModel, StreamedModel, open_model
from ..progress import Progress, note, telling
from ..registry import choose
from .calibration import DEFAULT_LENGTH
from .checks import known_ids, vocabulary
from .evaluation_result import Continuation, Evaluation
from .held_out import evaluation_text, perplexities
from .keeping import Stored, keeping
from .passes import hidden_bytes
from .stock import standing
from .texts import named

# The text of the field, where none is named and nothing else is asked for.
DEFAULT_TEXT = "wikitext2"
# Tokens of the text that a continuation begins with.
_PROMPT = 32


@renamed(tokens="evaluate_tokens", windows="evaluate_lengths")
@public(
    model=a_model,
    text=optional(a_text),
    against=optional(a_model),
    tasks=some(a_word),
    limit=optional(a_count(2)),
    prompts=some(a_word),
    continuations=a_count(0),
    new_tokens=a_count(1),
    tokenizer=a_tokenizer,
    evaluate_tokens=optional(a_count(2)),
    evaluate_lengths=optional(some(a_whole)),
    batch=a_count(1),
    device=a_device,
    dtype=a_dtype,
    hidden_gib=a_number,
    device_gib=optional(a_number),
    resident=a_word,
    fresh=a_flag,
    progress=a_progress,
)
def evaluate(
    model: str | Path | nn.Module,
    text: Any = None,
    *,
    against: str | Path | nn.Module | None = None,
    tasks: str | Sequence[str] = (),
    limit: int | None = None,
    prompts: str | Sequence[str] = (),
    continuations: int = 0,
    new_tokens: int = 48,
    field: str | None = None,
    bos: str = "auto",
    tokenizer: Any = None,
    evaluate_tokens: int | None = None,
    evaluate_lengths: int | Sequence[int] | None = None,
    batch: int = 8,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    merge_adapter: bool | None = None,
    dequantise: bool = False,
    hidden_gib: float = 4.0,
    device_gib: float | None = None,
    resident: str = "auto",
    store: Stored = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """How good any supported model is, pruned or not, one layer in memory at a time.

    The result reads as a list of perplexities on `text`, one a window length; with `against`, a
    dense model, it has the divergence from it and all numbers of both. `text` is a name (as for
    calibration), strings, rows with text in them, or tokens as a tensor [window, token], which come
    in windows of that length unless `evaluate_lengths` says otherwise; by default it is wikitext2,
    or none where tasks or prompts are asked for.

    `tasks` are names of lm-evaluation-harness, `zero-shot` for the seven of the pruning papers,
    .jsonl files or folders of them, `limit` questions of each. `prompts`, and as many
    `continuations` of the text as that, are continued greedily by `new_tokens`.

    `bos` is `each`, `document`, `never` or `auto` (see `secateur.data.beginning`). `merge_adapter`
    and `dequantise` are those of `open_model`, `store` and `fresh` those of `prune`. Of hidden
    states, `hidden_gib` GiB stay in memory, beside `device_gib` on a GPU (None: what is free less a
    margin); with `resident` weights are read once.

    Raises:
        SecateurError: bad input.
    """
    choose("--bos", bos, dict.fromkeys(get_args(Bos)))
    asked = asked_tasks(tasks)
    text = _text_of(text, others=bool(asked or prompts))
    names, given = named({"evaluate": "none" if text is None else text})
    machine = {"device": device, "dtype": dtype, "resident": resident, "device_gib": device_gib}
    with telling(progress), keeping(store, None, None, fresh=fresh) as kept:
        opened = open_model(model, merge_adapter=merge_adapter, dequantise=dequantise)
        models = [_Measured.of(opened, tokenizer, machine)]
        if against is not None:
            beside = open_model(against, merge_adapter=merge_adapter, dequantise=dequantise)
            _alike(opened, beside)
            models.append(_Measured.of(beside, tokenizer, machine))
        if limit is not None and not asked:
            note("--limit changes nothing without --tasks")
        questions = evaluation.harness().loaded(asked) if asked else None
        options = {"tokens": evaluate_tokens, "field": field, "bos": bos}
        stream, lengths = _read(models, names["evaluate"], given, evaluate_lengths, options)
        beginnings = _prompts(models[0], list(prompts), continuations, stream)
        how = _How(batch, hidden_bytes(hidden_gib), kept)
        return Evaluation(
            **_numbers(models, stream, lengths, how),
            **_found_of_tasks(models, questions, limit, how),
            continuations=_continued(models, beginnings, new_tokens, how),
            text=None if stream is None else names["evaluate"],
            begin=None if stream is None else stream.begin,
            form=standing(opened),
        )


def _text_of(text: Any, *, others: bool) -> Any:
    """The text that is measured on, None for none; `others`: something else is asked for."""
    if text is None:
        return None if others else DEFAULT_TEXT
    return None if isinstance(text, str) and text == "none" else text


@dataclass(frozen=True)
class _How:
    """How passes run: windows of the usual length at once, bytes of hidden states, the store."""

    batch: int
    limit: int
    store: Store | None


@dataclass(frozen=True)
class _Measured:
    """A model that is measured; the tokenizer is asked for where one is needed."""

    opened: OpenModel
    source: StreamedModel
    given: Any

    @classmethod
    def of(cls, opened: OpenModel, tokenizer: Any, machine: Mapping[str, Any]) -> "_Measured":
        for message in opened.notes:
            note(message)
        words = {name: str(machine[name]) for name in ("device", "dtype", "resident")}
        source = opened.streamed(**words, device_gib=machine["device_gib"])
        return cls(opened, source, tokenizer)

    @property
    def tokenizer(self) -> Any:
        return self.given or self.opened.tokenizer

    def tasks(
        self, tasks: Mapping[str, Any], limit: int | None, how: _How, stage: str
    ) -> tuple[TaskResult, ...]:
        """What the harness finds."""
        harness = evaluation.harness()
        scored = harness.Scored(
            self.source,
            self.tokenizer,
            self.opened.context,
            self.whole,
            at_once=how.batch * DEFAULT_LENGTH,
            limit=how.limit,
            store=how.store,
            stage=stage,
        )
        return tuple(harness.run(scored, tasks, limit))

    def whole(self) -> Any:
        """The model with all its weights in memory."""
        return self.opened.whole(self.source.dtype).to(self.source.device)

    def writes(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, how: _How, stage: str
    ) -> list[str]:
        """What follows each prompt."""
        tokenizer = self.tokenizer
        found = evaluation.continuations(
            self.source,
            prompts,
            new_tokens=new_tokens,
            ends=evaluation.end_tokens(self.opened.config, tokenizer),
            context=self.opened.context,
            limit=how.limit,
            store=how.store,
            stage=stage,
        )
        return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in found]


def _alike(opened: OpenModel, dense: OpenModel) -> None:
    ours, theirs = vocabulary(opened), vocabulary(dense)
    if ours != theirs:
        raise SecateurError(
            f"The dense model {dense.source} has {theirs:,} tokens, the model {ours:,}: they do not"
            " share a vocabulary.\nName the model that this one was pruned from: --against DENSE"
        )


def _read(
    models: Sequence[_Measured],
    name: str,
    given: Mapping[str, Any],
    asked: int | Sequence[int] | None,
    options: Mapping[str, Any],
) -> tuple[Text | None, list[int]]:
    """The text, if there is one, and the lengths of the windows that it is cut into."""
    if name == "none":
        return None, []
    own, first = given.get("evaluate"), models[0]
    stream = evaluation_text(first.opened, name, tokenizer=first.given, given=own, **options)
    ready = given_windows(own)
    context = min(one.opened.context for one in models)
    usual = window_lengths(context) if ready is None else (ready.shape[1],)
    wanted = [asked] if isinstance(asked, int) else asked
    return stream, _fitting(wanted or usual, context, stream, name)


def _numbers(
    models: Sequence[_Measured], stream: Text | None, lengths: Sequence[int], how: _How
) -> dict[str, Any]:
    """Perplexity at each window length, and beside the dense model, if there are both."""
    if stream is None:
        return {}
    options: dict[str, Any] = {"limit": how.limit, "store": how.store}
    if len(models) == 1:
        source = models[0].source
        found = perplexities(source, stream, lengths, how.batch, "perplexity", **options)
        return {"perplexities": tuple(found)}
    both = evaluation.beside(
        models[0].source,
        models[1].source,
        [stream.windows(length) for length in lengths],
        [max(1, how.batch * DEFAULT_LENGTH // length) for length in lengths],
        begin=stream.begin.window,
        **options,
    )
    return {
        "perplexities": tuple(one.model for one in both),
        "dense_perplexities": tuple(one.dense for one in both),
        "agreement": tuple(one.agreement for one in both),
    }


def _found_of_tasks(
    models: Sequence[_Measured],
    questions: Mapping[str, Any] | None,
    limit: int | None,
    how: _How,
) -> dict[str, Any]:
    """What the harness finds of each model."""
    if questions is None:
        return {}
    stages = {"tasks": "tasks", "dense_tasks": "tasks, the dense model"}
    return {
        name: one.tasks(questions, limit, how, stage)
        for one, (name, stage) in zip(models, stages.items(), strict=False)
    }


def _prompts(
    measured: _Measured, typed: Sequence[str], count: int, stream: Text | None
) -> list[tuple[str, list[int]]]:
    """What is to be continued, as text and tokens: what was typed, and places of the text."""
    made = []
    for text in typed:
        ids = list(measured.tokenizer(text)["input_ids"])
        if not ids or len(ids) >= measured.opened.context:
            raise SecateurError(
                f"A prompt of {len(ids)} tokens cannot be continued: the model reads"
                f" {measured.opened.context} at once, and needs one."
            )
        made.append((text, known_ids(torch.tensor(ids), measured.opened).tolist()))
    if count and stream is None:
        raise SecateurError(
            f"--continuations {count} are of a text, and none is named.\nType --evaluate FILE.txt"
            " (or give prompts: --prompt TEXT)."
        )
    if count and stream is not None:
        windows = stream.windows(min(_PROMPT, measured.opened.context // 2))
        for window in windows[:: max(len(windows) // count, 1)][:count]:
            ids = window.tolist()
            made.append((str(measured.tokenizer.decode(ids, skip_special_tokens=True)), ids))
    return made


def _continued(
    models: Sequence[_Measured],
    prompts: Sequence[tuple[str, list[int]]],
    new_tokens: int,
    how: _How,
) -> tuple[Continuation, ...]:
    """What each model writes after each prompt."""
    if not prompts:
        return ()
    stages = ("continuations", "continuations, the dense model")
    ids = [one for _, one in prompts]
    written = [
        one.writes(ids, new_tokens, how, stage) for one, stage in zip(models, stages, strict=False)
    ]
    return tuple(
        Continuation(text, *texts) for (text, _), *texts in zip(prompts, *written, strict=True)
    )


def _fitting(lengths: Sequence[int], context: int, stream: Text, text: str) -> list[int]:
    """The window lengths that the model and the text allow; an error if there is none."""
    if min(lengths) < 2 or max(lengths) > context:
        raise SecateurError(
            f"--evaluate-lengths must lie between 2 and the context of the model, {context} tokens."
        )
    fitting = [length for length in lengths if len(stream.windows(length))]
    if not fitting:
        raise SecateurError(
            f"The text of {text} has {len(stream.ids)} tokens, fewer than one window of"
            f" {min(lengths)}.\nGive more text, or smaller --evaluate-lengths."
        )
    return fitting
