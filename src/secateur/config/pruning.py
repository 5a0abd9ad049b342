"""The settings of pruning."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from ..budgets import BUDGETS
from ..errors import SecateurError
from ..fusion import FUSIONS
from ..importance import IMPORTANCE, REDUCTIONS
from ..methods import BEST, EFFORTS, METHODS, use
from ..profiles import PROFILES
from ..search import SCALES, SEARCHES
from ..surgery import REPAIRS, TARGETS, WHOLE
from .budgeting import Latency, Memory, Parameters, one_budget
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

# The settings that fusions take; which of them takes which, `FUSIONS` says.
OF_FUSIONS = ("tau", "probes", "splits", "shrinkage", "scope")


# What takes the place of a method's own where whole layers or blocks go: there is no share of one,
# and what it leaves is mended by a fit alone.
_OF_WHOLE_UNITS = {"search": "AL-AM", "repair": "refit"}


# The groups of options in --help: those that it shows, and those that --help-all shows besides.
PRUNE_GROUPS = {
    "Most used": (
        "out config method effort methods ratio ratios repairs calibration recover minutes dry_run",
        "",
    ),
    "Parts of a method": (
        "importance search repair",
        "use fusion fine members tau probes splits shrinkage scope square_attention scale rescore"
        " target damping search_minutes search_rounds",
    ),
    "What may go": (
        "layers granularity align profile",
        "stock tensor_parallel parameters memory speedup latency at_context at_batch of"
        " attention_layers mlp_layers attention_ratio attention_units",
    ),
    "Texts": (
        "samples evaluate evaluate_lengths",
        "length field bos evaluate_tokens prompts seed",
    ),
    "Machine": (
        "device dtype",
        "store batch fresh hidden_gib device_gib resident merge_adapter dequantise text_only format"
        " push_to_hub private track",
    ),
}


class PruneConfig(Reading):
    """Everything that decides what a pruned folder holds. Unknown keys are errors."""

    KNOWN: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "method": METHODS,
        "effort": EFFORTS,
        "importance": IMPORTANCE,
        "fusion": FUSIONS,
        "members": REDUCTIONS,
        "scale": SCALES,
        "target": TARGETS,
        "search": SEARCHES,
        "repair": REPAIRS,
        "profile": PROFILES,
        "dtype": dict.fromkeys(("auto", "float32", "bfloat16", "float16")),
    }

    model: Annotated[str, Field(description="Folder, or name on the Hugging Face hub")]
    method: Annotated[str, Field(description="Method: score, search and repair by one name")] = BEST
    effort: Annotated[str, Field(description="Ways that best tries: fast, good, max")] = "good"
    use: Annotated[
        str | None, Field(description="Python file with a score, fusion or search of your own")
    ] = None
    ratio: Annotated[
        float | None, Field(ge=0, lt=1, description="Ratio of parameters to remove")
    ] = 0.2
    parameters: Parameters = None
    memory: Memory = None
    speedup: Annotated[
        float | None,
        Field(gt=1, le=1000, description="Budget of time: a token this many times faster"),
    ] = None
    latency: Latency = None
    at_context: Annotated[
        int | None,
        Field(ge=1, description="Context of the KV cache; default: the model's, 4096 at most"),
    ] = None
    at_batch: Annotated[int, Field(ge=1, description="Sequences in the KV cache")] = 1
    of: Annotated[
        Literal["linears", "model"], Field(description="What the ratio is a share of")
    ] = "linears"
    importance: Annotated[str | None, Field(description="Score; default: the method's")] = None
    fusion: Annotated[
        str | None, Field(description="Fusion of coarse and fine scores, in place of a score")
    ] = None
    fine: Annotated[
        Literal["first", "second", "mixed"],
        Field(description="Fine score of a fusion: first order, Fisher, both"),
    ] = "first"
    tau: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="Temperature of the blend")
    ] = None
    probes: Annotated[
        int | None, Field(ge=2, le=1024, description="Probes of the loss for each scope")
    ] = None
    splits: Annotated[
        int | None,
        Field(ge=1, le=10_000, description="Splits of the calibration windows into halves"),
    ] = None
    shrinkage: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="How far blends are drawn to the equal one"),
    ] = None
    scope: Annotated[
        Literal["layer_kind", "global"] | None,
        Field(description="Scope that shares one noise (SAAP)"),
    ] = None
    members: Annotated[str, Field(description="How members of a unit make one gradient score")] = (
        "sum"
    )
    search: Annotated[str | None, Field(description="Search; default: the method's")] = None
    search_minutes: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Minutes that a search in rounds (kl) takes"),
    ] = None
    search_rounds: Annotated[
        int | None, Field(ge=1, description="Rounds of a search in rounds (kl); default: all")
    ] = None
    rescore: Annotated[
        bool, Field(description="Take scores anew after each layer that goes (granularity layer)")
    ] = False
    repair: Annotated[str | None, Field(description="Repair; default: the method's")] = None
    scale: Annotated[
        str | None, Field(description="Scale on which layers compare; default: the search's")
    ] = None
    target: Annotated[str, Field(description="Target of refit and mask-tuning")] = "residual"
    damping: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="Damping of the fit; default: held-out text"),
    ] = None
    attention_units: Annotated[
        int | None, Field(ge=0, description="Attention units to remove (UL-MM, AL-MM, uniform)")
    ] = None
    attention_ratio: Annotated[
        float | None,
        Field(ge=0, lt=1, description="Ratio of attention to remove (UL-MM, AL-MM, uniform)"),
    ] = None
    square_attention: Annotated[
        bool, Field(description="Square attention scores, as FLAP's public code does")
    ] = False
    layers: Annotated[str | None, Field(description="Layers that may lose units: 4-29")] = None
    attention_layers: Annotated[
        str | None, Field(description="Layers whose attention may lose units; default: --layers")
    ] = None
    mlp_layers: Annotated[
        str | None, Field(description="Layers whose MLP may lose units; default: --layers")
    ] = None
    granularity: Annotated[
        str | None,
        Field(description="Granularity of units; default: kv_group,channel"),
    ] = None
    align: Annotated[
        int | None,
        Field(
            ge=1,
            description="MLP widths stay multiples of it  [32; narrow MLPs 8]",
        ),
    ] = None
    stock: Annotated[bool, Field(description="Plans alone that the stock class holds")] = False
    profile: Annotated[str, Field(description="Profile of the engine that is to run it")] = "free"
    tensor_parallel: Annotated[
        int, Field(ge=1, description="Devices of a tensor parallelism that is to run it")
    ] = 1
    calibration: Annotated[str | None, Field(description="Calibration text")] = None
    samples: Annotated[int, Field(ge=1, description="Calibration windows")] = 128
    length: Annotated[int | None, Field(ge=2, description="Tokens in a calibration window")] = None
    field: TextField = None
    bos: BosMode = "auto"
    evaluate: Evaluate = "spare"
    evaluate_tokens: EvaluateTokens = None
    prompts: Prompts = 3
    batch: Annotated[int, Field(ge=1, description="Batch: windows at once")] = 8
    seed: Annotated[int, Field(ge=0, le=2**63 - 1, description="Seed of every draw")] = 0
    device: Device = "auto"
    dtype: Annotated[str, Field(description="Arithmetic; auto: the checkpoint's if fast")] = "auto"
    hidden_gib: Annotated[
        float,
        Field(
            ge=0, allow_inf_nan=False, description="GiB of hidden states in memory, then on disk"
        ),
    ] = 4.0
    device_gib: DeviceGib = None
    resident: Resident = "auto"
    format: Format = "safetensors"

    @model_validator(mode="after")
    def _one_budget(self) -> "PruneConfig":
        """A budget that is given takes the place of the usual ratio."""
        ratio = self.ratio
        if one_budget(self, self.model_fields_set) != "ratio":
            ratio = None
        elif ratio is None:
            ratio = PruneConfig.model_fields["ratio"].default
        object.__setattr__(self, "ratio", ratio)  # frozen from here on
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "PruneConfig":
        if self.search_minutes is not None and self.search_rounds is not None:
            raise SecateurError(
                "--search-minutes and --search-rounds both say how long the search is; give one."
            )
        return self

    @property
    def budget_name(self) -> str:
        """The budget in force: the name of its setting."""
        return next((n for n in BUDGETS if n != "ratio" and getattr(self, n) is not None), "ratio")

    @property
    def budget_timed(self) -> bool:
        """Whether the budget is of time: it needs the table that is measured on this machine."""
        return "table" in BUDGETS[self.budget_name].needs

    @property
    def fusion_name(self) -> str | None:
        """The fusion in force; None if a score is."""
        return self.fusion or (None if self.importance else METHODS[self.method].fusion)

    @property
    def fusion_settings(self) -> dict[str, Any]:
        """The settings given that the fusion in force takes."""
        taken = FUSIONS[self.fusion_name].settings if self.fusion_name else ()
        return {name: value for name in taken if (value := getattr(self, name, None)) is not None}

    @property
    def importance_name(self) -> str | None:
        """The score in force; None if a fusion is."""
        return None if self.fusion_name else self.importance or METHODS[self.method].importance

    @property
    def search_name(self) -> str:
        """The search in force."""
        if self.search is not None:  # of a plan, the method may be known no more
            return self.search
        own = METHODS[self.method].search
        fits = not self.whole_units or SEARCHES[own].across
        return own if fits else _OF_WHOLE_UNITS["search"]

    @property
    def asks_loss(self) -> bool:
        """Whether the search in force asks what the loss is; with `rescore` there is none."""
        return not self.rescore and SEARCHES[self.search_name].asks_loss

    @property
    def asks_divergence(self) -> bool:
        """Whether it asks how far candidates are from the dense model."""
        return not self.rescore and SEARCHES[self.search_name].asks_divergence

    @property
    def asks_gradient(self) -> bool:
        """Whether it asks for gradients by gates."""
        return not self.rescore and SEARCHES[self.search_name].asks_gradient

    @property
    def in_rounds(self) -> bool:
        """Whether it goes in rounds."""
        return not self.rescore and SEARCHES[self.search_name].in_rounds

    @property
    def untouched(self) -> tuple[float, float]:
        """The shares of layers at the start and the end that the method leaves alone."""
        return METHODS[self.method].untouched if self.method in METHODS else (0.0, 0.0)

    @property
    def repair_name(self) -> str:
        """The repair in force."""
        if self.repair is not None:
            return self.repair
        own = METHODS[self.method].repair
        fits = not self.whole_units or own == "none" or REPAIRS[own].fits
        return own if fits else _OF_WHOLE_UNITS["repair"]

    @property
    def whole_units(self) -> bool:
        """Whether whole layers or blocks are units."""
        return any(name.strip() in WHOLE for name in (self.granularity or "").split(","))


def make_config(**settings: Any) -> PruneConfig:
    """Check settings.

    Raises:
        SecateurError: an unknown setting, a value of the wrong type or out of range.
    """
    if isinstance(settings.get("use"), str):
        use(settings["use"])
    try:
        return PruneConfig(**settings)
    except ValidationError as error:
        example = "secateur prune MODEL --ratio 0.2 --out DIR"
        raise SecateurError(explained(error, PruneConfig, example)) from error
