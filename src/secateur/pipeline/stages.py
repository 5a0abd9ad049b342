"""The stages of a run, each a function that can be called alone.

calibration -> statistics -> scores -> kept units -> added biases -> perplexity
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import data
from ..checkpoint import Weights
from ..config import PruneConfig
from ..errors import SecateurError
from ..evaluation import Perplexity, perplexity
from ..fusion import FUSIONS
from ..importance import IMPORTANCE, Importance, score
from ..models import OpenModel, StreamedModel, loaded
from ..progress import Progress, Quiet
from ..search import Limits
from ..stats import Statistics, Walk, collect
from ..stats.activations import MEMORY_LIMIT
from ..structure import Axis, Plan, Structure
from ..surgery import REPAIRS, Repaired, sequential_repair, with_consumers
from .checks import known_ids

# Windows shorter than this say little about attention; longer ones cost more than they add.
DEFAULT_LENGTH = 256
DEFAULT_CALIBRATION = "c4"
SPARE_TOKENS = 16384

_AS_GIVEN = data.Beginning("given")


def window_length(length: int | None, opened: OpenModel) -> int:
    """Tokens of a window (or of an example at most): `length`, or what suits the model.

    Raises:
        SecateurError: it is longer than the context.
    """
    length = length or min(DEFAULT_LENGTH, opened.context)
    if length > opened.context:
        raise SecateurError(
            f"--length {length} is longer than the context of the model, {opened.context} tokens."
            f"\nType --length {opened.context} or less."
        )
    return length


def calibration_windows(
    opened: OpenModel,
    config: PruneConfig,
    *,
    tokenizer: Any = None,
    note: Callable[[str], None] | None = None,
    given: Any = None,
    progress: Progress | None = None,
) -> data.Windows:
    """The calibration stage: windows of tokens, as the settings say.

    `given` is text in the place of the one that the settings name; tokens [window, token] are the
    windows as they are.

    Raises:
        SecateurError: no such text, too little of it, or windows longer than the context.
    """
    if (ready := data.given_windows(given)) is not None:
        return _ready(ready, opened, config)
    length = window_length(config.length, opened)
    tokenizer = tokenizer or opened.tokenizer
    if config.calibration == "self":
        if note is not None:
            note("the model writes its own calibration text; for that alone it is loaded whole")
        documents: Iterable[Any] = _own_text(opened, config, length)
        choice = 1
    else:
        source = config.calibration or DEFAULT_CALIBRATION
        documents = data.documents(
            source if given is None else given,
            use="calibration",
            seed=config.seed,
            field=config.field,
            tokenizer=tokenizer,
            note=note,
        )
        choice = data.CHOICE
    make: dict[str, Any] = {
        "samples": config.samples,
        "length": length,
        "seed": config.seed,
        "bos": config.bos,
        "progress": progress,
        "spare": True,  # whatever is evaluated on: the same seed means the same windows
    }
    source = config.calibration or DEFAULT_CALIBRATION
    try:
        windows = data.sample_windows(documents, tokenizer, source=source, choice=choice, **make)
    except SecateurError as error:
        if config.calibration is not None:
            raise
        if note is not None:
            note(
                f"{str(error).splitlines()[0]}\nCalibrating on the English text in this package"
                " instead; a text like what the model will read is better: --calibration FILE.txt"
            )
        documents = data.documents(data.EMBEDDED, use="calibration", seed=config.seed)
        windows = data.sample_windows(documents, tokenizer, source=data.EMBEDDED, **make)
    known_ids(windows.ids, opened)
    return windows


def _ready(windows: Tensor, opened: OpenModel, config: PruneConfig) -> data.Windows:
    """Windows of tokens that were given, as calibration reads them; there is no text to spare."""
    if "samples" in config.model_fields_set:
        windows = windows[: config.samples]
    window_length(windows.shape[1], opened)
    known_ids(windows, opened)
    return data.Windows(windows, windows.new_empty(0), data.GIVEN, _AS_GIVEN)


def evaluation_text(
    opened: OpenModel,
    source: str,
    *,
    tokenizer: Any = None,
    tokens: int | None = None,
    window: int = 2,
    field: str | None = None,
    bos: str = "auto",
    given: Any = None,
    note: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> data.Text:
    """The text that perplexity is taken on, as running token ids [token].

    `given` is text in the place of the one that `source` names; tokens [window, token] come one
    window after the other.

    Raises:
        SecateurError: no such text, not one `window` of it, or the tokenizer is another model's.
    """
    if (ready := data.given_windows(given)) is not None:
        return data.Text(known_ids(ready.flatten()[:tokens], opened), _AS_GIVEN)
    tokenizer = tokenizer or opened.tokenizer
    documents = data.documents(
        source if given is None else given,
        use="evaluation",
        seed=None,
        field=field,
        tokenizer=tokenizer,
        note=note,
    )
    text = data.running_text(
        documents, tokenizer, source=source, at_most=tokens, bos=bos, progress=progress
    )
    if not len(text.windows(window)):
        raise SecateurError(
            f"The text of {source} has {len(text.ids)} tokens, fewer than one window of {window}.\n"
            "Give more text, or --evaluate none."
        )
    known_ids(text.ids, opened)
    return text


def fine_axes(structure: Structure, whole: Structure, layers: Limits) -> list[Axis]:
    """The axes whose statistics make the scores of those of `structure` that may lose units.

    Coarse ones are made of finer ones, which `whole` has.
    """
    chosen = layers.selected(structure.axes)
    names = dict.fromkeys(name for axis in chosen for name in axis.of or (axis.name,))
    return [whole.by_name[name] for name in names]


def statistics(
    source: StreamedModel,
    axes: Sequence[Axis],
    windows: data.Windows,
    needs: Iterable[str],
    config: PruneConfig,
    *,
    progress: Progress | None = None,
) -> Statistics:
    """Walk the layers once and collect `needs` for `axes`.

    Raises:
        SecateurError: an activation is not finite.
    """
    return collect(walk(source, windows.ids, config), axes, needs, progress=progress)


def walk(
    source: StreamedModel, tokens: Tensor, config: PruneConfig, without: Collection[int] = ()
) -> Walk:
    """The way through the layers that the settings ask for."""
    limit = hidden_bytes(config.hidden_gib)
    return Walk(source, tokens, batch=config.batch, limit=limit, without=without)


def hidden_bytes(gib: float) -> int:
    """How many bytes of hidden states may stay in memory."""
    return int(min(gib, 2**20) * 2**30)


def asks_loss(fusion: str | None) -> bool:
    """Whether a fusion keeps windows apart to ask what the loss is."""
    return fusion is not None and "probe" in FUSIONS[fusion].asks


def scores(
    axes: Sequence[Axis],
    importance: str,
    weights: Weights,
    statistics: Statistics,
    *,
    seed: int,
    members: str = "sum",
    square_attention: bool = False,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The scoring stage: [unit, width] by axis.

    Raises:
        SecateurError: the score needs statistics of one input, and an axis has many readers.
    """
    chosen = IMPORTANCE[importance]
    found: dict[str, Tensor] = {}
    for axis in (progress or Quiet()).track(axes, "scores", len(axes), "axis"):
        tally: Any = statistics.tallies.get(axis.name, {})
        value = _score(chosen, axis, weights, tally, seed, members)
        found[axis.name] = value**2 if square_attention and axis.kind == "attention" else value
    return found


def _score(
    chosen: Importance, axis: Axis, weights: Weights, tally: Any, seed: int, members: str
) -> Tensor:
    if len(axis.consumers) == 1:
        weight = weights.tensor(axis.consumer.tensor) if "weight" in chosen.needs else None
        return score(chosen, axis, weight, tally, seed=seed, members=members)
    if not set(chosen.needs) <= {"weight", "generator"}:
        raise SecateurError(
            f"The score {chosen.name!r} looks at the input of one consumer, and the"
            f" {axis.granularity} units have {len(axis.consumers)}.\n"
            "Type --importance magnitude-l2 (or magnitude-l1, random)."
        )
    parts = []
    for consumer in axis.consumers:
        alone = replace(axis, members=(consumer,))
        weight = weights.tensor(consumer.tensor) if "weight" in chosen.needs else None
        parts.append(score(chosen, alone, weight, tally, seed=seed).sum(dim=1))
    return torch.stack(parts).sum(dim=0)[:, None]


def coarse_scores(structure: Structure, fine: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores of the axes of `structure`: a coarse unit's is the sum of those in it."""
    found: dict[str, Tensor] = {}
    for axis in structure.axes:
        parts = [fine[name] for name in axis.of or (axis.name,) if name in fine]
        if axis.of and parts:
            sums = [part.reshape(axis.units, -1).sum(dim=1, keepdim=True) for part in parts]
            found[axis.name] = torch.stack(sums).sum(dim=0)
        elif parts:
            found[axis.name] = parts[0]
    return found


def coarse_samples(
    structure: Structure, fine: Mapping[str, Tensor] | None
) -> dict[str, Tensor] | None:
    """The same of scores by calibration sample, [sample, unit]."""
    if fine is None:
        return None
    turned = {name: samples.T for name, samples in fine.items()}
    found: dict[str, Tensor] = {}
    for axis in structure.axes:
        parts = [turned[name] for name in axis.of or (axis.name,) if name in turned]
        if not parts:
            continue
        count = parts[0].shape[1]
        sums = [part.reshape(axis.units, -1, count).sum(dim=1) for part in parts]
        found[axis.name] = torch.stack(sums).sum(dim=0).T
    return found


def added_biases(
    structure: Structure, plan: Plan, repair: str, weights: Weights, statistics: Statistics
) -> dict[str, Tensor]:
    """The repair stage: what is added to the consumers' biases, by tensor name."""
    biases: dict[str, Tensor] = {}
    for axis in structure.axes if REPAIRS[repair].needs else ():
        # Experts have no module of their own that could take a bias.
        if not plan.removed(axis) or axis.consumer.parameter != "weight":
            continue
        weight = weights.tensor(axis.consumer.tensor)
        bias = REPAIRS[repair].added_bias(axis, plan, weight, statistics[axis.name])
        if bias is not None:
            biases[f"{axis.consumer.module}.bias"] = bias
    return biases


def fitted_tensors(
    source: StreamedModel,
    structure: Structure,
    whole: Structure,
    plan: Plan,
    windows: data.Windows,
    config: PruneConfig,
    *,
    progress: Progress | None = None,
) -> Repaired:
    """The repair stage where consumers are fitted in sequence: their new tensors, and reports.

    `whole` has the axes of all granularities: where `structure` has layers alone, the linears in
    those that stay are fitted.
    """
    fit = REPAIRS[config.repair_name].fit
    assert fit is not None, "a repair that fits says what"
    return sequential_repair(
        walk(source, windows.ids, config),
        with_consumers(structure, whole),
        plan,
        fit=fit,
        target=config.target,
        damping=config.damping,
        progress=progress,
    )


def perplexities(
    source: StreamedModel,
    text: data.Text,
    lengths: Sequence[int],
    batch: int,
    progress: Progress,
    stage: str,
    *,
    limit: int = MEMORY_LIMIT,
) -> list[Perplexity]:
    """One value a window length; batches of long windows are smaller, so that memory stays even."""
    found = []
    for length in lengths:
        windows = max(1, batch * DEFAULT_LENGTH // length)
        found.append(
            perplexity(
                source,
                text.windows(length),
                batch=windows,
                limit=limit,
                begin=text.begin.window,
                progress=progress,
                stage=f"{stage}, {length}",
            )
        )
    return found


def _own_text(opened: OpenModel, config: PruneConfig, length: int) -> Iterable[Tensor]:
    """The model's own samples; it is loaded whole for that, as nothing else is."""
    if opened.folder is None:
        raise SecateurError("A live model is not sampled from; give calibration a text.")
    model = loaded(opened, dtype=config.dtype).to(config.device)
    return data.generated_documents(model, length=length, batch=config.batch, seed=config.seed)
