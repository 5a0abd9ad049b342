"""lm-evaluation-harness on a streamed model. Imported when tasks are asked for (`tasks.harness`).

The harness has the tasks, their prompts, their metrics and standard errors; it asks a model for
log-likelihoods, all at once, and those come from one walk over the layers. Only tasks that have the
model write (gsm8k) need it whole.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
import lm_eval.tasks
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.evaluator import evaluate
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ..checkpoint import Store
from ..errors import SecateurError
from ..progress import note
from ..stats import LayerSource
from ..stats.activations import MEMORY_LIMIT
from .likelihood import LogLikelihood, log_likelihoods
from .local_tasks import LocalTask
from .standard_error import Estimate
from .tasks import SEVEN, Asked, TaskResult

# Draws of a bootstrap, for metrics whose standard error has no formula.
_DRAWS = 1000


@dataclass
class Scored:
    """What is to be scored: layers, a tokenizer, and how much goes through a layer at once.

    `context` tokens are read at once; `whole` gives the model with all its weights, for tasks that
    have it write.
    """

    source: LayerSource
    tokenizer: Any
    context: int
    whole: Callable[[], Any]
    at_once: int = 2048
    limit: int = MEMORY_LIMIT
    store: Store | None = None
    stage: str = "tasks"


class StreamedLM(TemplateLM):
    """A model as the harness wants one; tokens are made as its own `hf` makes them."""

    backend = "causal"

    def __init__(self, scored: Scored) -> None:
        super().__init__()
        self.scored, self.tokenizer = scored, scored.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text.

        Raises:
            SecateurError: the tokenizer has none.
        """
        if self.tokenizer.eos_token_id is None:
            raise SecateurError(
                "The tokenizer has neither a token that begins a text nor one that ends it, and the"
                " harness puts one before its questions.\nName one in tokenizer_config.json."
            )
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        own = self.tokenizer.bos_token_id
        return self.eot_token_id if own is None else int(own)

    @cached_property
    def _prefix(self) -> str:
        return str(self.tokenizer.decode(self.prefix_token_id))

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids, with what the tokenizer puts before a text, unless it is there."""
        if add_special_tokens is None and string.startswith(self._prefix):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **given))

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Of each continuation after its context, and whether greedy decoding gives it."""
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = self._found([(before, after) for _, before, after in requests])
        return [(one.value, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Of whole texts, each token after as much as the model reads at once."""
        owners, windows = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.scored.context,
                context_len=1,
            ):
                owners.append(number)
                windows.append(make_disjoint_window(window))
        sums = [0.0] * len(requests)
        for owner, found in zip(owners, self._found(windows), strict=True):
            sums[owner] += found.value
        return sums

    def _found(self, requests: Sequence[tuple[list[int], list[int]]]) -> list[LogLikelihood]:
        one = self.scored
        options: dict[str, Any] = {"limit": one.limit, "store": one.store, "stage": one.stage}
        return log_likelihoods(
            one.source, requests, context=one.context, at_once=one.at_once, **options
        )

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """What the model writes, greedily or as the task says; by the harness's own code."""
        from lm_eval.models.huggingface import HFLM

        note("a task has the model write; for that alone it is loaded whole")
        own = HFLM(
            pretrained=self.scored.whole(),
            tokenizer=self.tokenizer,
            max_length=self.scored.context,
        )
        return list(own.generate_until(requests, disable_tqdm=True))


def loaded(asked: Asked) -> Mapping[str, Any]:
    """The tasks that were asked for, with their questions read from the hub or local files.

    Raises:
        SecateurError: no such task, or its data cannot be read.
    """
    with _silent():
        manager = _manager(asked.names)
        made: list[Any] = [_own(task) for task in asked.local]
        for name in asked.names:
            made += _built(manager, name)
        found: Mapping[str, Any] = manager.load(made)
        for task in found["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return found


def run(scored: Scored, tasks: Mapping[str, Any], limit: int | None = None) -> list[TaskResult]:
    """What the harness finds, of at most `limit` questions a task.

    Raises:
        SecateurError: a task wants pictures, or to run code that a model writes.
    """
    try:
        with _silent():
            found = evaluate(
                StreamedLM(scored), tasks, limit=limit, bootstrap_iters=_DRAWS, log_samples=True
            )
    except ValueError as error:
        if not str(error).startswith("Attempted to run"):
            raise
        raise SecateurError(
            "A task of these asks for pictures, or runs code that the model writes.\n"
            "Run it yourself: lm_eval --model hf --model_args pretrained=DIR --tasks NAME"
        ) from error
    groups = tasks.get("groups", {})
    return [_result(name, found, group=name in groups) for name in found["results"]]


def _manager(names: Sequence[str]) -> Any:
    """The harness's list of tasks; only those that are needed, if all are known."""
    if all(name in SEVEN for name in names):
        place = Path(lm_eval.tasks.__file__).parent
        folders = [str(place / SEVEN[name]) for name in names]
        return lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    manager = _whole_manager()
    for name in names:
        if name not in manager.all_tasks:
            raise _unknown(name, manager.all_tasks)
    return manager


@cache
def _whole_manager() -> Any:
    """Of all tasks that the harness has: it reads 14,000 files of its own, which takes seconds."""
    return lm_eval.tasks.TaskManager()


def _unknown(name: str, known: Sequence[str]) -> SecateurError:
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
    return SecateurError(
        f"Unknown task {name!r}.{hint}\nType zero-shot ({', '.join(SEVEN)}), a .jsonl file, a"
        " folder of such files, or a name that `lm_eval ls tasks` lists."
    )


def _built(manager: Any, name: str) -> list[Any]:
    """A task or a group with its data; of a tag, all its tasks."""
    try:
        found = manager.load([name])
    except Exception as error:  # of the hub, of datasets, of a package that a task alone needs
        reason = (str(error).splitlines() or [""])[0][:200]
        raise SecateurError(
            f"The task {name!r} cannot be read ({type(error).__name__}: {reason}).\nIts data come"
            " from the hub; without it, give local files: --tasks FOLDER"
        ) from error
    groups = found.get("groups", {})
    return [groups[name]] if name in groups else list(found["tasks"].values())


def _own(task: LocalTask) -> Any:
    """A task of local rows, by the harness's own words for such."""
    split = datasets.Dataset.from_list(list(task.rows))
    layout = (
        {"doc_to_text": "gold", "doc_to_choice": "context_options", "doc_to_target": "continuation"}
        if task.before
        else {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}
    )
    # the same words follow every option: their length norms nothing
    metrics = ("acc",) if task.before else ("acc", "acc_norm")
    return ConfigurableTask(
        config={
            "task": task.name,
            "custom_dataset": lambda **_: {"test": split},
            "test_split": "test",
            "output_type": "multiple_choice",
            **layout,
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True}
                for name in metrics
            ],
        }
    )


def _result(name: str, found: Mapping[str, Any], *, group: bool) -> TaskResult:
    told = found["results"][name]
    metrics: dict[str, Estimate] = {}
    for key, value in told.items():
        metric, _, kind = key.partition(",")
        if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = told.get(f"{metric}_stderr,{kind}")
            known = float(error) if isinstance(error, int | float) else None
            metrics[metric if kind == "none" else f"{metric} ({kind})"] = Estimate(
                float(value), known
            )
    samples = [one for one in found["samples"].get(name, ()) if one["filter"] == "none"]
    values = {
        metric: tuple(float(one[metric]) for one in samples)
        for metric in metrics
        if all(isinstance(one.get(metric), int | float) for one in samples)
    }
    items = found["n-samples"].get(name, {}).get("effective", told.get("sample_len", 0))
    return TaskResult(name, int(items), metrics, values, group)


@contextmanager
def _silent() -> Iterator[None]:
    """No bars and notices of the harness and of datasets: they would run through ours."""
    log, module, bars = logging.getLogger("lm_eval"), lm_eval.api.task, datasets
    level, bar = log.level, module.tqdm
    shown = bars.are_progress_bars_disabled()
    log.setLevel(logging.ERROR)
    module.tqdm = lambda items, **_: items
    bars.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        module.tqdm = bar
        if not shown:
            bars.enable_progress_bars()
