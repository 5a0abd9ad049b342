"""Which of several ways to prune a model is best for it, found on its calibration windows alone.

    KL(dense || pruned and repaired)        a mean over tokens that no fit has seen

The method `best` has several ways, by its effort; every other method is one way, and nothing is
asked. All are tried on some of the windows first; the two best of them are then made of all.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from ..checkpoint import Store
from ..config import PruneConfig
from ..errors import SecateurError
from ..evaluation import divergences
from ..methods import BEST, EFFORTS, FALLBACKS, Parts
from ..models import StreamedModel
from ..profiles import FREE
from ..progress import note, timed
from ..search import SEARCHES
from ..structure import Axis, Plan
from .choice import check_reach
from .choosing import choose, score_units, scoring_of
from .cutting import Cut, cut
from .estimate import Estimate, asking_windows
from .held_out import streamed
from .passes import Seen, hidden_bytes, look, needs_of, sees_tokens
from .rounds import check_rounds, rounds_numbers, rounds_of, settled
from .subject import Subject
from .texts import READ, Texts, read_texts

Tokens = Int64[Tensor, "window token"]
Asking = Int64[Tensor, "asking token"]
# Scores by what they depend on.
Known = dict[tuple[Any, ...], Estimate]
# Of the windows, the share that the first trials are fitted on, and how many ways go on.
_FIRST, _LEFT = 1 / 4, 2


@dataclass(frozen=True)
class Chosen:
    """The way that is taken: its settings, scores and plan; the cut, if it had to be made.

    `contest` has what was tried, with the divergence of each; `search` how many rounds a search
    made, if it goes in such, and the divergence that it came to.
    """

    subject: Subject
    scores: Estimate
    plan: Plan
    small: Cut | None = None
    contest: tuple[dict[str, Any], ...] = ()
    search: dict[str, Any] | None = None


def ways_of(subject: Subject, config: PruneConfig) -> list[Subject]:
    """The model of `subject` by each way that `config` asks for: one, but for the method `best`.

    What the settings name is not varied. Of what `best` tries, the ways that go with the units and
    the other settings; if none does, a plainer one.

    Raises:
        SecateurError: no way goes with them.
    """
    found = _ways_of(subject, config)
    check_rounds(config, [way.config for way in found])
    return [*found, *_unbound(subject, config, found)]


def _unbound(subject: Subject, config: PruneConfig, found: Sequence[Subject]) -> list[Subject]:
    """The first way under no profile, where there is a contest: what the profile costs."""
    if len(found) < 2 or config.profile == FREE:
        return []
    free = config.model_copy(update={"profile": FREE})
    with suppress(SecateurError):
        return [_way(subject, free, EFFORTS[config.effort].tried[0], found)]
    return []


def _ways_of(subject: Subject, config: PruneConfig) -> list[Subject]:
    if config.method != BEST:
        subject = subject.asked(config)
        check_reach(subject.structure, subject.config, subject.budget)
        return [subject]
    errors: list[SecateurError] = []
    for several in (EFFORTS[config.effort].tried, FALLBACKS):
        found: list[Subject] = []
        for parts in several:
            if config.samples < 2 and SEARCHES[parts.search].asks_divergence:
                continue
            try:
                way = _way(subject, config, parts, found)
            except SecateurError as error:
                errors.append(error)
            else:
                if way.config not in [other.config for other in found]:
                    found.append(way)
        if found:
            return found
    raise errors[0]


def _way(subject: Subject, config: PruneConfig, parts: Parts, found: Sequence[Subject]) -> Subject:
    """The model under the settings with those of `parts` that they do not name.

    Raises:
        SecateurError: they do not go together.
    """
    wanted: dict[str, str | None] = asdict(parts)
    if config.fusion:  # its scores may be below zero
        wanted |= {"importance": None, "search": "AL-AM"}
    unnamed = {name: value for name, value in wanted.items() if getattr(config, name) is None}
    way = replace(subject.asked(config.model_copy(update=unnamed)), varied=tuple(unnamed))
    if found and found[0].budget.timed:  # measured once for all
        way = replace(way, asks=found[0].asks)
    check_reach(way.structure, way.config, way.budget)
    return way


def read_for(
    ways: Sequence[Subject],
    store: Store | None,
    given: Mapping[str, Any],
    *,
    measure: bool = True,
) -> tuple[list[Subject], Texts]:
    """Read the texts once for all ways; what passes find is kept in `store`.

    Raises:
        SecateurError: as `read_texts`.
    """
    calibrate = any(sees_tokens(needs_of(way), way.config) for way in ways)
    read, texts = read_texts(ways[0], given, calibrate=calibrate, measure=measure)
    names = {name: getattr(read.config, name) for name in READ}
    return [way.keeping(store).under(**names) for way in ways], texts


def look_for(ways: Sequence[Subject], axes: Sequence[Axis], tokens: Tokens | None) -> Seen:
    """Collect all that any of `ways` needs of `axes`.

    Raises:
        SecateurError: as `look`.
    """
    return look(ways[0], axes, tokens, map(needs_of, ways))


def best_of(
    ways: Sequence[Subject], tokens: Tokens | None, seen: Seen, known: Known | None = None
) -> Chosen:
    """The best of `ways`; `seen` has all that they need, `known` scores that were made before."""
    known = {} if known is None else known
    plans = _all_planned(ways, tokens, seen, known)
    asking = asking_windows(tokens)
    if len(plans) == 1 or tokens is None or asking is None:
        return plans[0]
    rows: list[dict[str, Any]] = []
    bound = plans[0].subject.config.profile
    if len(plans) > _LEFT:
        some = tokens[: max(1, round(len(tokens) * _FIRST))]
        tried = _nearest(_tried(plans, some, asking, seen, rows))
        _tell_price(tried, bound, len(some))
        own = _nearest(one for one in tried if one[1].subject.config.profile == bound)
        plans = [plan for _, plan in own[:_LEFT]]
    (_, best), *_ = _nearest(_tried(plans, tokens, asking, seen, rows))
    return replace(best, contest=tuple(rows))


def _tell_price(tried: Sequence[tuple[float, Chosen]], bound: str, windows: int) -> None:
    """What the profile costs in divergence, beside the plan without one."""
    by = {one.subject.config.profile: divergence for divergence, one in reversed(tried)}
    if bound != FREE and {bound, FREE} <= by.keys():
        note(
            f"--profile {bound}: KL to the dense model {by[bound]:.3f} nats a token, without a"
            f" profile {by[FREE]:.3f} (each fitted on {windows} windows)"
        )


def _all_planned(
    ways: Sequence[Subject], tokens: Tokens | None, seen: Seen, known: Known
) -> list[Chosen]:
    """What goes by each way; the rounds that the first search has time for are those of all.

    So that one number of rounds repeats every one of them.
    """
    plans: list[Chosen] = []
    length: dict[str, Any] = {}
    for way in ways:
        one = _planned(way.under(**length), tokens, seen, known)
        if one.search and not length:
            config = one.subject.config
            length = {name: getattr(config, name) for name in ("search_minutes", "search_rounds")}
        plans.append(one)
    return [replace(one, subject=one.subject.under(**length)) for one in plans]


def _nearest(tried: Iterable[tuple[float, Chosen]]) -> list[tuple[float, Chosen]]:
    """By divergence, the least first.

    Raises:
        SecateurError: no way gave a model that computes.
    """
    found = sorted(tried, key=lambda one: one[0])
    if not found:
        raise SecateurError(
            "No way to prune that the method best tries leaves a model whose numbers are finite.\n"
            "Type --dtype float32, or a smaller --ratio."
        )
    return found


def cut_by(best: Chosen, tokens: Tokens | None, seen: Seen) -> Cut:
    """The cut of the way that is taken, repaired, if it was not made already."""
    return best.small or cut(best.subject, best.plan, tokens, seen.of(needs_of(best.subject)))


def _planned(way: Subject, tokens: Tokens | None, seen: Seen, known: Known) -> Chosen:
    """What goes by one way."""
    statistics = seen.of(needs_of(way))
    if (scoring := scoring_of(way)) not in known:
        known[scoring] = score_units(way, tokens, statistics)
    scores, rounds = known[scoring], rounds_of(way.config, tokens)
    plan = choose(way, tokens, scores, statistics, rounds)
    done = rounds_numbers(way.config, rounds)
    return Chosen(replace(way, config=settled(way.config, rounds)), scores, plan, search=done)


def _tried(
    plans: Sequence[Chosen], tokens: Tokens, asking: Asking, seen: Seen, rows: list[dict[str, Any]]
) -> Iterator[tuple[float, Chosen]]:
    """How far each is from the dense model when it is cut and repaired by `tokens`."""
    made: list[Chosen] = []

    def models() -> Iterator[StreamedModel]:
        for one in plans:
            subject = one.subject
            try:
                small = cut(subject, one.plan, tokens, seen.of(needs_of(subject)))
            except SecateurError as error:
                own = subject.config
                note(f"{own.importance_name}, {own.search_name}: {str(error).splitlines()[0]}")
                continue
            made.append(replace(one, small=small))
            yield streamed(small.form, subject.opened, subject.source, small.made_by)

    subject = plans[0].subject
    config = subject.config
    with timed("contest"):
        found = divergences(
            subject.source,
            models(),
            asking,
            batch=config.batch,
            limit=hidden_bytes(config.hidden_gib),
            store=subject.store,
            stage="contest",
        )
        for divergence in found:
            one = made.pop()
            if math.isinf(divergence):
                continue
            own = one.subject.config
            rows.append(
                {
                    "importance": own.importance_name or own.fusion_name,
                    "search": own.search_name,
                    "repair": own.repair_name,
                    "profile": own.profile,
                    "windows": len(tokens),
                    "divergence": divergence,
                }
            )
            yield divergence, one
