"""The stages that score units and choose those that stay: statistics become a plan."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from ..progress import note, timed, within_a_stage
from ..search import DivergenceOfUnits, LossOfUnits, Rounds, Units, one_by_one
from ..stats import Statistics
from ..structure import Axis, Plan
from .candidates import divergences
from .choice import kept_units, limits_of
from .estimate import Estimate, few_tokens, fused_scores, searching_windows, split_windows
from .gating import gradient_of_gates
from .passes import look, needs_of_scores, walk
from .planned import recorded
from .probing import masked_losses
from .rounds import settled
from .scoring import masks_of_parts, scores, sums_by_sample, sums_of_parts
from .subject import Subject

Tokens = Int64[Tensor, "window token"]


def scoring_of(subject: Subject) -> tuple[Any, ...]:
    """What the scores of settings that differ in method, ratio and repair alone depend on."""
    axes = tuple(axis.name for axis in subject.scored)
    config = subject.config
    return (axes, config.importance_name, config.fusion_name, needs_of_scores(config).asks_loss)


def score_units(subject: Subject, tokens: Tokens | None, statistics: Statistics) -> Estimate:
    """Scores of the fine axes, by the score or the fusion in force."""
    config = subject.config
    with timed("scores and search"):
        if config.fusion_name is None:
            return Estimate(_scores(subject, subject.scored, statistics))
        assert tokens is not None, "a fusion is of gradient terms"
        _, asking = split_windows(tokens, config.fusion_name)
        return fused_scores(
            config.fusion_name,
            subject.scored,
            statistics,
            walk(subject, few_tokens(asking)),
            seed=config.seed,
            fine=config.fine,
            settings=config.fusion_settings,
        )


def _scores(subject: Subject, axes: Sequence[Axis], statistics: Statistics) -> dict[str, Tensor]:
    """Scores of `axes` by the score in force."""
    config = subject.config
    assert config.importance_name is not None, "no fusion makes them"
    return scores(
        axes,
        config.importance_name,
        subject.opened.weights,
        statistics,
        seed=config.seed,
        members=config.members,
        square_attention=config.square_attention,
        asks=needs_of_scores(config).asks_loss,
    )


def choose(
    subject: Subject,
    tokens: Tokens | None,
    found: Estimate,
    statistics: Statistics,
    rounds: Rounds | None = None,
) -> Plan:
    """The plan: which units stay, by the search in force; `rounds` are those of one in such.

    With `rescore`, whole layers go one by one, and after each the scores are taken anew.

    Raises:
        SecateurError: the ratio asks for more than can go.
    """
    structure, config = subject.structure, subject.config
    coarse = sums_of_parts(structure, found.scores)
    with timed("scores and search"):
        if config.rescore:
            keep = _one_by_one(subject, tokens, coarse)
        else:
            by_sample = sums_by_sample(structure, found.by_sample)
            keep = kept_units(
                structure,
                coarse,
                config,
                by_sample,
                subject.opened.weights,
                _loss(subject, tokens),
                _divergence(subject, tokens, statistics),
                gradient_of_gates(subject, tokens, statistics),
                subject.budget,
                rounds,
            )
    plan = recorded(keep, structure, settled(config, rounds))
    if subject.budget.wanted > 0 and not any(map(plan.removed, structure.axes)):
        asks = "the ratio" if config.ratio is not None else subject.budget.option
        note(f"nothing is removed: {asks} asks for less than one unit")
    return plan


def _loss(subject: Subject, tokens: Tokens | None) -> LossOfUnits | None:
    """The loss that a search asks for: of the model with some units masked."""
    config = subject.config
    if tokens is None or not config.asks_loss:
        return None
    _, asking = split_windows(tokens, config.fusion_name, config.search_name)
    way = walk(subject, asking)

    def losses(gone: Sequence[Units]) -> Tensor:
        masks = masks_of_parts(subject.structure, subject.opened.structures, gone)
        return masked_losses(way, masks)

    return losses


def _divergence(
    subject: Subject, tokens: Tokens | None, statistics: Statistics
) -> DivergenceOfUnits | None:
    """How far models without some units are from the dense one, their consumers fitted at once."""
    config, structure, whole = subject.config, subject.structure, subject.opened.structures
    if tokens is None or not config.asks_divergence:
        return None
    split_windows(tokens, config.fusion_name, config.search_name)  # too few are told
    asking = searching_windows(tokens)
    fitted_on = walk(subject, tokens).known_by

    def found(gone: Sequence[Units], count: int | None) -> Tensor:
        windows = None if count is None else -(-count // asking.shape[1])
        way = walk(subject, asking[:windows])
        masks = masks_of_parts(structure, whole, gone)
        candidates = [
            {axis: tuple(mask[row].nonzero().flatten().tolist()) for axis, mask in masks.items()}
            for row in range(len(gone))
        ]
        with within_a_stage() if config.in_rounds else nullcontext():
            return divergences(way, candidates, statistics, fitted_on)

    return found


def _one_by_one(
    subject: Subject, tokens: Tokens | None, first: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """Layers that go, one by one: the scores are those of the model without the ones before."""
    needs = needs_of_scores(subject.config)

    def scores_without(gone: frozenset[int]) -> Mapping[str, Tensor]:
        if not gone:
            return first
        left = [axis for axis in subject.scored if axis.layer not in gone]
        seen = look(subject, left, tokens, [needs], gone)
        fine = _scores(subject, left, seen.of(needs))
        return sums_of_parts(subject.structure, fine)

    axes = subject.budget.priced(subject.structure.axes)
    chosen = limits_of(subject.structure, subject.config).selected(axes)
    wanted = subject.budget.wanted
    return {axis.name: () for axis in one_by_one(chosen, wanted, scores_without)}
