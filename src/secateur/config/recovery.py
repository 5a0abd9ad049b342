"""The settings of a recovery, and what each recipe takes where they say nothing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError

from ..errors import SecateurError
from ..recovery import GRIDS, TOKENS_AT_ONCE, Schedule
from ..registry import choose
from .explain import explained
from .reading import (
    BosMode,
    Device,
    DeviceGib,
    Evaluate,
    EvaluateTokens,
    Format,
    Prompts,
    Reading,
    Resident,
    TextField,
)


@dataclass(frozen=True, slots=True)
class Loss:
    """What training makes smaller, and for how long unless the settings say so.

    Without `steps`, `epochs` over the data.
    """

    summary: str
    batch: int
    epochs: int
    steps: int | None
    warmup: int


LOSSES = {
    # Steps and not epochs: the dense model runs over no more examples than these see. Small batches
    # bring a model back with fewer tokens.
    "kl": Loss("KL divergence from the dense model's predictions", 4, 2, 800, 40),
    # LLM-Pruner's recipe (2305.11627), as are rate, rank, alpha and dropout of LoRA.
    "next-token": Loss("cross-entropy of the text's next token", 64, 2, None, 100),
}


@dataclass(frozen=True, slots=True)
class Trainable:
    """What changes in training, and how fast unless the settings say so.

    A `relative` rate is multiplied with what suits each tensor's size
    (`secateur.recovery.plain_weights.relative_rate`); adapters start from nothing, so that a share
    of their size is no measure.
    """

    summary: str
    rate: float
    relative: bool


TRAINED = {
    "consumers": Trainable(
        "the linears that read heads and channels (o_proj, down_proj), and their biases", 0.3, True
    ),
    "lora": Trainable("low-rank changes of every linear, merged", 1e-4, False),
    "groupwise": Trainable(
        "low-rank changes of the zero points of linears in few bits, merged", 1e-3, False
    ),
    "all": Trainable("every weight", 0.15, True),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained (a name in `TRAINED`), and towards what (a name in `LOSSES`)."""

    summary: str
    train: str
    loss: str


RECIPES = {
    "distil": Recipe(
        "The dense model's predictions as target; consumers alone, shapes stay as they are.",
        "consumers",
        "kl",
    ),
    "lora": Recipe(
        "Low-rank changes of every linear, merged; the loss on the next token (LLM-Pruner).",
        "lora",
        "next-token",
    ),
    "groupwise": Recipe(
        "Linears in few bits, their zero points tuned and merged (SAAP, QA-LoRA).",
        "groupwise",
        "kl",
    ),
}
# The recovery of the method, whichever that is.
OWN = "own"
# What no recovery can follow: the weights are in few bits.
_LAST = "groupwise"

# The groups of options in --help: those that it shows, and those that --help-all shows besides.
RECOVER_GROUPS = {
    "Most used": ("out config recipe data teacher", ""),
    "What is trained, and towards what": (
        "train loss rank bits group",
        "alpha dropout grid keep_adapter top_k on_prompts",
    ),
    "Steps": ("steps minutes batch rate", "epochs micro warmup patience seed"),
    "Texts": ("samples length evaluate", "field bos evaluate_tokens prompts"),
    "Machine": (
        "device dtype store",
        "fresh hidden_gib device_gib resident recompute shard merge_adapter dequantise text_only"
        " format push_to_hub private track",
    ),
}


# The settings that say how long to train, of which one is given.
HOW_LONG = ("steps", "epochs", "minutes")


class RecoverConfig(Reading):
    """Everything that decides what a recovered folder holds. Unknown keys are errors."""

    KNOWN: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "recipe": RECIPES,
        "train": TRAINED,
        "loss": LOSSES,
        "grid": GRIDS,
        "dtype": dict.fromkeys(("auto", "float32", "bfloat16")),
        "recompute": dict.fromkeys(("auto", "always", "never")),
    }

    model: Annotated[str, Field(description="Pruned folder, or any supported model")]
    recipe: Annotated[str, Field(description="Recipe: what is trained, and towards what")] = (
        "distil"
    )
    data: Annotated[str | None, Field(description="Text or instructions to train on")] = None
    train: Annotated[str | None, Field(description="Trained by distil; default: consumers")] = None
    loss: Annotated[
        str | None,
        Field(description="Loss: kl or next-token; default: the recipe's"),
    ] = None
    teacher: Annotated[
        str | None, Field(description="Teacher, the dense model; default: run.toml's")
    ] = None
    top_k: Annotated[
        int, Field(ge=0, description="Likeliest tokens kept of the teacher; 0: all")
    ] = 128
    samples: Annotated[int, Field(ge=2, description="Examples at most, held-out ones too")] = 50_000
    length: Annotated[
        int | None, Field(ge=2, description="Tokens of an example at most  [256]")
    ] = None
    field: TextField = None
    bos: BosMode = "auto"
    on_prompts: Annotated[bool, Field(description="Take the loss on instructions too")] = False
    steps: Annotated[int | None, Field(ge=1, description="Steps; default: the loss's")] = None
    epochs: Annotated[
        int | None, Field(ge=1, description="Epochs over the data, in place of steps")
    ] = None
    minutes: Annotated[
        float | None,
        Field(gt=0, le=10_000_000, description="Minutes to train, in place of steps"),
    ] = None
    batch: Annotated[int | None, Field(ge=1, description="Examples in a step")] = None
    micro: Annotated[
        int | None,
        Field(
            ge=1,
            description="Examples at once, gradients add up; default: those of"
            f" {TOKENS_AT_ONCE:,} tokens",
        ),
    ] = None
    recompute: Annotated[
        str, Field(description="Activations made again on the way back, to save memory")
    ] = "auto"
    shard: Annotated[
        bool, Field(description="Each rank holds its shard of the weights, and not all of them")
    ] = False
    rate: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Learning rate; default: that of what is trained",
        ),
    ] = None
    warmup: Annotated[int | None, Field(ge=0, description="Steps of warm-up")] = None
    patience: Annotated[
        int, Field(ge=1, description="Checks without a better loss before it stops")
    ] = 4
    rank: Annotated[int, Field(ge=1, description="Rank of lora and groupwise")] = 8
    alpha: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Alpha of lora and groupwise: they count alpha / rank",
        ),
    ] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout of lora")] = 0.05
    bits: Annotated[int, Field(ge=2, le=8, description="Bits of a groupwise weight")] = 4
    group: Annotated[int, Field(ge=1, description="Input columns that share a zero point")] = 32
    grid: Annotated[str, Field(description="How the grid of a group is found")] = "min-max"
    evaluate: Evaluate = "spare"
    evaluate_tokens: EvaluateTokens = None
    prompts: Prompts = 3
    seed: Annotated[int, Field(ge=0, le=2**40, description="Seed of every draw")] = 0
    device: Device = "auto"
    dtype: Annotated[str, Field(description="Arithmetic; auto: bfloat16 where it is fast")] = "auto"
    hidden_gib: Annotated[
        float,
        Field(
            ge=0, allow_inf_nan=False, description="GiB of hidden states in memory, then on disk"
        ),
    ] = 4.0
    device_gib: DeviceGib = None
    resident: Resident = "auto"
    format: Format = "safetensors"

    @property
    def distils(self) -> bool:
        """Whether a teacher is the target."""
        return self.loss_name == "kl"

    @property
    def loss_name(self) -> str:
        """What is made smaller: a name in `LOSSES`."""
        return self.loss or RECIPES[self.recipe].loss

    @property
    def trained(self) -> str:
        """What is trained: a name in `TRAINED`."""
        return self.train or RECIPES[self.recipe].train

    @property
    def own_steps(self) -> int | None:
        """How many steps are asked for; None where they follow from epochs over the data."""
        return self.steps or (None if self.epochs else LOSSES[self.loss_name].steps)

    @property
    def most_examples(self) -> int:
        """How many examples the steps can see, if these do not follow from the data."""
        steps, batch = self.own_steps, self.batch or LOSSES[self.loss_name].batch
        return self.samples if steps is None else steps * batch

    def schedule(self, examples: int) -> Schedule:
        """Steps and rates for so many examples to train on."""
        loss, trained = LOSSES[self.loss_name], TRAINED[self.trained]
        batch = min(self.batch or loss.batch, examples)
        steps = self.own_steps
        if steps is None:
            steps = max(1, math.ceil((self.epochs or loss.epochs) * examples / batch))
        warmup = min(loss.warmup, steps // 10) if self.warmup is None else self.warmup
        return Schedule(
            steps=steps,
            batch=batch,
            micro=None if self.micro is None else min(self.micro, batch),
            rate=self.rate or trained.rate,
            relative=trained.relative,
            warmup=warmup,
            seed=self.seed,
            patience=self.patience,
        )


def make_recover_config(**settings: Any) -> RecoverConfig:
    """Check settings.

    Raises:
        SecateurError: an unknown setting, a value of the wrong type or out of range, or settings
            that do not go together.
    """
    try:
        config = RecoverConfig(**settings)
    except ValidationError as error:
        example = "secateur recover DIR --recipe distil --data text.txt --out DIR2"
        raise SecateurError(explained(error, RecoverConfig, example)) from error
    _check_how_long(config)
    if config.shard and config.trained == "groupwise":
        raise SecateurError(
            "--shard divides weights in floating point, and groupwise trains linears in few bits.\n"
            "Leave --shard out: each process then has all of the model."
        )
    own = RECIPES[config.recipe].train
    if config.recipe == "distil" and not config.distils:
        raise SecateurError(
            "--recipe distil learns from the dense model, not from the next token.\n"
            "Type: --loss kl, or --recipe lora, or --recipe groupwise --loss next-token"
        )
    if config.recipe != "distil" and config.trained != own:
        raise SecateurError(
            f"--recipe {config.recipe} trains {own}, not {config.train}.\n"
            f"Type: --recipe {'' if config.train in RECIPES else 'distil --train '}{config.train}"
        )
    return config


def _check_how_long(config: RecoverConfig) -> None:
    given = [f"--{name}" for name in HOW_LONG if getattr(config, name) is not None]
    if len(given) > 1:
        raise SecateurError(
            f"{' and '.join(given)} each say how long to train; expected one of them.\n"
            f"Type: {given[-1]} alone, or {' or '.join(given[:-1])} alone"
        )


def recipes_of(text: str) -> list[str]:
    """The recoveries that `--recover` lists: "distil", "own", "distil,groupwise".

    Raises:
        SecateurError: there is no such recovery, one is there twice, or they cannot follow another.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        choose("recovery", name, {**RECIPES, OWN: OWN})
    if len(names) > 1 and OWN in names:
        raise SecateurError(
            f"{OWN} is a recovery by itself, not one of several: {text}.\n"
            f"Name them all, of {', '.join(RECIPES)}."
        )
    if len(set(names)) < len(names) or _LAST in names[:-1]:
        raise SecateurError(
            f"--recover {text}: expected each recovery once, {_LAST} as the last one.\n"
            f"Type: --recover distil,{_LAST}"
        )
    return names
