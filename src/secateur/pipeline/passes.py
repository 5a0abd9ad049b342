"""The passes over the dense model that scores and repairs ask for: what is collected of its layers.

    statistics of consumers' inputs    one walk up
    gradient terms                     one walk up and one down

What several methods ask for is collected in one pass for all of them.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor

from ..config import PruneConfig
from ..fusion import FUSIONS
from ..importance import IMPORTANCE, gradients_needed
from ..progress import timed
from ..stats import Statistics, Walk, collect, collect_gradients
from ..structure import Axis
from ..surgery import REPAIRS
from ..surgery.one_shot import FITTED_BY
from .estimate import fused_terms, split_windows
from .scoring import reduction, too_large
from .subject import Subject


@dataclass(frozen=True)
class Needs:
    """Statistics of inputs and gradient terms by name; `fusion` is the one that asks.

    `search` is one that asks what the loss is, if it does. `scores` are made in the pass, of
    statistics that do not outlive their layer. `gates` are trained on tokens.
    """

    inputs: frozenset[str] = frozenset()
    terms: frozenset[str] = frozenset()
    fusion: str | None = None
    search: str | None = None
    scores: frozenset[str] = frozenset()
    gates: bool = False

    @property
    def asks_loss(self) -> bool:
        """Whether windows are kept from the gradients, to ask what the loss is."""
        probes = self.fusion is not None and "probe" in FUSIONS[self.fusion].asks
        return probes or self.search is not None

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.inputs | other.inputs,
            self.terms | other.terms,
            self.fusion or other.fusion,
            self.search or other.search,
            self.scores | other.scores,
            self.gates or other.gates,
        )


def needs_of_scores(config: PruneConfig) -> Needs:
    """What the score or the fusion in force asks for, and the search."""
    if config.asks_divergence:
        plain = config.model_copy(update={"search": "AL-AM"})
        return needs_of_scores(plain) | Needs(FITTED_BY)
    search = config.search_name if config.asks_loss else None
    if config.fusion_name is not None:
        terms = frozenset(fused_terms(config.fine))
        return Needs(terms=terms, fusion=config.fusion_name, search=search)
    assert config.importance_name is not None, "there is a score or a fusion"
    score = IMPORTANCE[config.importance_name]
    inputs, terms = frozenset(score.statistics), frozenset(gradients_needed(score))
    if too_large(score.name):
        return Needs(terms=terms, search=search, scores=frozenset({score.name}))
    return Needs(inputs, terms, search=search)


def needs_of_repair(config: PruneConfig) -> Needs:
    """What the repair in force asks for, beside tokens."""
    return Needs(frozenset(REPAIRS[config.repair_name].statistics))


def needs_of(subject: Subject) -> Needs:
    """What the settings ask for, from the scores to the repair."""
    config = subject.config
    gates = Needs(FITTED_BY if fits_gates(config) else frozenset(), gates=config.asks_gradient)
    return needs_of_scores(config) | gates | needs_of_repair(config)


def fits_gates(config: PruneConfig) -> bool:
    """Whether a search asks for gradients by gates through consumers that are fitted."""
    return config.asks_gradient and REPAIRS[config.repair_name].fits


def sees_tokens(needs: Needs, config: PruneConfig) -> bool:
    """Whether anything in the method looks at calibration tokens."""
    repair = REPAIRS[config.repair_name]
    looked = needs.inputs or needs.terms or needs.scores
    return bool(looked or needs.asks_loss or needs.gates or repair.fits)


@dataclass(frozen=True)
class Seen:
    """What was collected: of inputs, and gradient terms by whether windows were kept from them."""

    inputs: Statistics
    terms: dict[bool, Statistics]

    def of(self, needs: Needs) -> Statistics:
        """All that `needs` may ask for."""
        found = Statistics()
        found.include(self.inputs)
        found.include(self.gradients(needs.asks_loss))
        return found

    def gradients(self, asks: bool) -> Statistics:
        """The gradient terms, with windows kept from them or not."""
        return self.terms.get(asks, Statistics())


def look(
    subject: Subject,
    axes: Sequence[Axis],
    tokens: Int64[Tensor, "window token"] | None,
    wanted: Iterable[Needs],
    without: Collection[int] = (),
) -> Seen:
    """Collect all that is `wanted` of `axes`, each kind in one pass (none if nothing is).

    The layers `without` are not there.

    Raises:
        SecateurError: an activation, a loss or a gradient is not finite, or too few windows.
    """
    wanted = list(wanted)
    seen = Seen(Statistics(), {})
    if tokens is None:
        return seen
    for asks in (False, True):
        alike = [needs for needs in wanted if needs.terms and needs.asks_loss is asks]
        terms = {name for needs in alike for name in needs.terms}
        if terms:
            scored, _ = split_windows(tokens, alike[0].fusion, alike[0].search)
            with timed("gradients"):
                way = walk(subject, scored, without)
                seen.terms[asks] = collect_gradients(way, axes, terms, seed=subject.config.seed)
    inputs = {name for needs in wanted for name in needs.inputs}
    made = {(name, needs.asks_loss) for needs in wanted for name in needs.scores}
    if inputs or made:
        config, weights = subject.config, subject.opened.weights
        reduced = dict(
            reduction(name, weights, config.seed, config.members, seen.gradients(asks), asks)
            for name, asks in sorted(made)
        )
        with timed("statistics"):
            way = walk(subject, tokens, without)
            seen.inputs.include(collect(way, axes, inputs, reduced=reduced))
    return seen


def walk(
    subject: Subject, tokens: Int64[Tensor, "window token"], without: Collection[int] = ()
) -> Walk:
    """The way through the layers that the settings ask for."""
    config = subject.config
    return Walk(
        subject.source,
        tokens,
        batch=config.batch,
        limit=hidden_bytes(config.hidden_gib),
        without=without,
        store=subject.store,
    )


def hidden_bytes(gib: float) -> int:
    """How many bytes of hidden states may stay in memory."""
    return int(min(gib, 2**20) * 2**30)
