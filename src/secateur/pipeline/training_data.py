"""What a recovery trains on, what it is measured on, and who teaches."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import data
from ..config import READING, RecoverConfig, read_toml
from ..data import Examples
from ..errors import SecateurError
from ..evaluation import window_lengths
from ..models import LIVE, OpenModel, open_model
from ..paths import typed_path
from ..progress import note
from .calibration import window_length
from .checks import known_ids
from .held_out import SPARE_TOKENS, HeldOut, evaluation_text

# Below so many tokens, what a training gains is mostly about those tokens.
FEW_TOKENS = 100_000
# As many examples as a model writes itself, unless told otherwise: they are slow to make.
OWN_EXAMPLES = 512
# Of the examples, the share that is held out, and the most that are.
_HELD_OUT, _HELD_OUT_MOST = 1 / 10, 64


@dataclass(frozen=True)
class TrainingData:
    """Examples of which the last `held` are kept from training; text for perplexity."""

    examples: Examples
    held: int
    source: str
    text: HeldOut | None
    begin: data.Beginning

    @property
    def trained_tokens(self) -> int:
        """Tokens that the training takes a loss on, in one pass over its examples."""
        return self.examples[torch.arange(len(self.examples) - self.held)].tokens


def read_data(
    opened: OpenModel,
    config: RecoverConfig,
    texts: Mapping[str, Any] | None = None,
) -> TrainingData:
    """The examples, in an order that the seed decides; what the user should know is told.

    `texts` are data and text for perplexity in the place of those that the settings name.

    Raises:
        SecateurError: no such data, too few of them, or windows longer than the context.
    """
    source = config.data
    if source is None:
        raise SecateurError(
            "No data to train on. Add --data FILE.txt (or .jsonl, alpaca-cleaned, c4, self)."
        )
    length = window_length(config.length, opened)
    texts = texts or {}
    given = texts.get("data")
    spare = data.Text(torch.zeros(0, dtype=torch.int64))
    begin = data.Beginning("given")
    samples = most_examples(config)
    options: dict[str, Any] = {
        "samples": samples,
        "length": length,
        "seed": config.seed,
    }
    if (ready := data.given_windows(given)) is not None:
        window_length(ready.shape[1], opened)
        examples = Examples.of_windows(ready[:samples])
    elif config.field is None and data.is_instructions(source if given is None else given):
        begin = data.beginning(opened.tokenizer, config.bos)
        examples = data.instruction_examples(
            source if given is None else given,
            opened.tokenizer,
            on_prompts=config.on_prompts,
            bos=config.bos,
            **options,
        )
    else:
        windows = data.sample_windows(
            _documents(opened, config, length, samples, given),
            opened.tokenizer,
            source=source,
            choice=1,
            spare=config.evaluate == "spare",
            bos=config.bos,
            stage="writing text" if source == "self" else "reading text",
            **options,
        )
        begin = windows.begin
        spare = data.Text(windows.spare[: config.evaluate_tokens or SPARE_TOKENS], begin)
        examples = Examples.of_windows(windows.ids, begin.window)
    known_ids(examples.ids, opened)
    if len(examples) < 2:
        raise SecateurError(
            f"{source} gives one example; at least one to train on and one held out are needed.\n"
            "Give more text, or a smaller --length."
        )
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(config.seed))
    examples = Examples(examples.ids[order], examples.labels[order])
    held = held_out(len(examples))
    if source == config.evaluate and typed_path(source).exists():  # a set has two parts
        note(f"perplexity is taken on {source}, which is trained on: another text would say more")
    text = _evaluation(opened, config, spare, texts.get("evaluate"))
    return TrainingData(examples, held, source, text, begin)


def most_examples(config: RecoverConfig) -> int:
    """How many examples are asked for: as many as the steps see, and those held out beside them."""
    seen = config.most_examples
    held = min(max(1, seen // 9), _HELD_OUT_MOST)
    samples = min(config.samples, seen + held)
    if config.data == "self" and "samples" not in config.model_fields_set:
        samples = min(samples, OWN_EXAMPLES)
    return samples


def held_out(examples: int) -> int:
    """How many of so many examples are kept from training."""
    return min(max(1, int(examples * _HELD_OUT)), _HELD_OUT_MOST)


def with_target(config: RecoverConfig, folder: Path | None) -> RecoverConfig:
    """The settings with `loss` said and, where it is kl, the dense model: the one that was pruned.

    A recipe that can do without a dense model does so, and says so, where the run.toml in
    `folder` names none.

    Raises:
        SecateurError: there is to be a dense model, and none is named.
    """
    optional = config.recipe != "distil" and config.loss is None
    config = config.model_copy(update={"loss": config.loss_name})
    if not config.distils or config.teacher is not None:
        return config
    record = None if folder is None else folder / "run.toml"
    model = read_toml(record).get("model") if record is not None and record.is_file() else None
    if isinstance(model, str) and model != LIVE:
        local = model.startswith((".", "/", "~")) or model.count("/") > 1
        if not local and not Path(model).exists():
            note(f"the dense model {model}, which run.toml names, is asked for on the hub")
        return config.model_copy(update={"teacher": model})
    if not optional:
        raise no_dense_model(config, "run.toml names none")
    note("run.toml names no dense model, nor does --teacher: the loss is on the next token")
    return config.model_copy(update={"loss": "next-token"})


def teacher_reading(config: RecoverConfig, opened: OpenModel) -> dict[str, Any]:
    """How the dense model is opened: as `config` says, or as the run that pruned it did."""
    record = None if opened.folder is None else opened.folder / "run.toml"
    known = read_toml(record) if record is not None and record.is_file() else {}
    same = known.get("model") == config.teacher
    earlier = {name: known[name] for name in READING if same and name in known}
    given = {name: value for name, value in config.reading.items() if value}
    return {**earlier, **given, "text_only": False}


def no_dense_model(config: RecoverConfig, why: str) -> SecateurError:
    """What to say where the loss is kl to a dense model that there is not."""
    other = "" if config.recipe == "distil" else ", or --loss next-token"
    return SecateurError(
        f"The dense model is to be learned from, and {why}.\nType: --teacher MODEL{other}"
    )


def _documents(
    opened: OpenModel,
    config: RecoverConfig,
    length: int,
    samples: int,
    given: Any,
) -> Iterable[str | Tensor]:
    if config.data != "self":
        return data.documents(
            str(config.data) if given is None else given,
            use="calibration",
            seed=config.seed,
            field=config.field,
            tokenizer=opened.tokenizer,
        )
    writer = (
        opened
        if config.teacher is None
        else open_model(config.teacher, **teacher_reading(config, opened))
    )
    note(
        f"{writer.source} writes the text to train on, up to {samples:,} examples (--samples); for"
        " that it is loaded whole"
    )
    on_gpu = config.device.startswith("cuda")
    dtype = torch.bfloat16 if on_gpu and config.dtype != "float32" else torch.float32
    model = writer.whole(dtype).to(config.device)
    return data.generated_documents(model, length=length, batch=8, seed=config.seed)


def _evaluation(
    opened: OpenModel,
    config: RecoverConfig,
    spare: data.Text,
    given: Any,
) -> HeldOut | None:
    if config.evaluate == "none":
        return None
    if config.evaluate == "spare":
        name = f"a part of {config.data} that nothing was trained on"
        return HeldOut(spare, name, str(config.data), opened.context)
    text = evaluation_text(
        opened,
        config.evaluate,
        tokens=config.evaluate_tokens,
        window=min(window_lengths(opened.context)),
        field=config.field,
        bos=config.bos,
        given=given,
    )
    return HeldOut(text, config.evaluate, config.evaluate, opened.context)
