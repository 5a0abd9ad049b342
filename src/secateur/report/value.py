"""What a run has to say, as one value: report.json, from which report.html is drawn.

Small numbers and summaries alone, no tensor; what was not measured is None or empty. docs/report.md
explains every key, docs/report.schema.json has the types.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..errors import SecateurError
from ..parsing import parse_json, read_text

SCHEMA = 1
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def _finite(value: Any) -> Any:
    """JSON has no infinity, and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Quantiles = Annotated[tuple[Number, ...], Field(min_length=7, max_length=7)]


class Part(BaseModel):
    """Frozen data; keys that it does not know are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Change(Part):
    """A number of the model before and after."""

    before: Number
    after: Number


class Perplexity(Change):
    """Perplexity per token in windows of so many tokens, and how many tokens were predicted."""

    window: int
    tokens: int


class Speed(Change):
    """Milliseconds for a token at a context and a batch; measured, or predicted by a table."""

    context: int
    batch: int
    measured: bool


class Method(Part):
    """The parts in force: a score or a fusion, a search, a repair."""

    name: str
    importance: str
    search: str
    repair: str


class Way(Part):
    """One that the method `best` tried: KL(dense || pruned) a token, repaired on `windows`.

    Where a profile binds the others, one is tried under the profile `free`, for comparison.
    """

    importance: str
    search: str
    repair: str
    profile: str = "free"
    windows: int
    divergence: Number


class Place(Part):
    """Like units of one layer (None: in all layers); `kind` is their granularity."""

    layer: int | None
    kind: str


class Cut(Place):
    """What stays of them: heads or channels `kept` `of` how many, and in units of the plan.

    `parameters` are those of all the units, `removed` those that went.
    """

    kept: int
    of: int
    units_kept: int
    units: int
    parameters: int
    removed: int


class Scores(Place):
    """The scores of the units: quantiles, and how many stay and go between each two `edges`."""

    quantiles: Quantiles
    edges: tuple[Number, ...]
    stay: tuple[int, ...]
    go: tuple[int, ...]


class Blend(Place):
    """The shares of a coarse and a fine score."""

    coarse: Number
    fine: Number


class Stability(Place):
    """Quantiles over units of std / mean of a unit's score over calibration windows."""

    quantiles: Quantiles


class Fit(Place):
    """A consumer that was repaired: squared error as a share of its target's, before and after.

    `damping` None is infinite: the bias alone was fitted. `condition` is that of the damped system.
    """

    module: str
    target: str
    damping: Number
    condition: Number
    before: Number
    after: Number
    fitted: bool


class Check(Part):
    """Loss a token after so many steps: of the steps since the check before, and held out."""

    step: int
    trained: Number = None
    held_out: Number


class Earlier(Part):
    """A training that another one followed in the same command."""

    recipe: str
    steps: int
    best_step: int
    perplexity: tuple[Perplexity, ...] = ()
    minutes: float | None = None


class Recovery(Part):
    """A training of the pruned model; `perplexity` is before and after it."""

    recipe: str
    trained: str
    trained_parameters: int
    source: str
    examples: int
    held_out: int
    tokens: int
    sha256: str
    steps: int
    best_step: int
    checks: tuple[Check, ...]
    perplexity: tuple[Perplexity, ...] = ()
    evaluated_on: str = ""
    bytes: Change
    settings: dict[str, Any] = {}
    earlier: tuple[Earlier, ...] = ()


class Sample(Part):
    """A prompt, and what each model goes on with when it always takes the likeliest token."""

    prompt: str
    before: str
    after: str


class Calibration(Part):
    """The windows of text that everything was fitted to."""

    text: str
    windows: int
    length: int
    sha256: str


class Row(Part):
    """One method, repair, ratio and seed of a comparison, on one model."""

    model: str = ""
    method: str
    repair: str
    ratio: float
    removed: float
    parameters: int
    bytes: int
    stock: bool
    seconds: Number
    perplexity: tuple[Perplexity, ...]
    seed: int | None = None
    calibration: Calibration | None = None
    blend: tuple[Blend, ...] = ()
    cut: tuple[Cut, ...] = ()


class LeftOut(Part):
    """A run of a sweep that made no row: it was refused, or its process died."""

    model: str
    method: str
    repair: str
    ratio: float
    seed: int
    why: str
    died: bool = False


class Report(Part):
    """All of report.json."""

    format: Literal[1] = Field(default=1, alias="schema")
    kind: Literal["prune", "recover", "compare"]
    model: str
    class_name: str = Field(default="", alias="class")
    why_not_stock: str = ""
    parameters: Change | None = None
    linears: Change | None = None
    bytes: Change | None = None
    perplexity: tuple[Perplexity, ...] = ()
    evaluated_on: str = ""
    speed: tuple[Speed, ...] = ()
    method: Method | None = None
    contest: tuple[Way, ...] = ()
    cut: tuple[Cut, ...] = ()
    importance: tuple[Scores, ...] = ()
    blend: tuple[Blend, ...] = ()
    stability: tuple[Stability, ...] = ()
    repair: tuple[Fit, ...] = ()
    recovery: Recovery | None = None
    samples: tuple[Sample, ...] = ()
    rows: tuple[Row, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    seed: int | None = None
    calibration: Calibration | None = None
    settings: dict[str, Any] = {}
    versions: dict[str, str] = {}

    def to_json(self) -> str:
        """The text of report.json."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


def read_report(file: Path) -> Report:
    """Read a report.json.

    Raises:
        SecateurError: no such file, not JSON, or not such a report.
    """

    def wrong(why: str) -> SecateurError:
        return SecateurError(
            f"{file} is not a report of schema {SCHEMA}: {why}.\nMake it anew by secateur prune,"
            " recover or compare."
        )

    raw = parse_json(read_text(file), wrong)
    try:
        return Report.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise wrong(f"{place}: {first['msg']}") from error
