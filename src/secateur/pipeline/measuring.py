"""The numbers of a run: parameters and perplexity, before and after."""

from collections.abc import Sequence
from typing import Any

from ..evaluation import Perplexity
from ..export import Form
from ..progress import timed
from ..structure import Plan
from ..surgery import pruned_view
from .budgeting import budget_numbers
from .contest import Chosen
from .cutting import Cut, form_numbers
from .held_out import compared, streamed
from .passes import hidden_bytes
from .subject import Subject
from .texts import Texts


def numbers_of(
    subject: Subject,
    texts: Texts,
    best: Chosen | None,
    plan: Plan,
    form: Form,
    small: Form | None = None,
) -> dict[str, Any]:
    """Numbers that no pass is needed for: what goes, and which class loads what stays.

    Of a model that was made, `small` is the form: what becomes of a budget of time is measured.
    """
    structure, weights = subject.structure, subject.opened.weights
    total, prunable = structure.parameters, structure.prunable
    left = pruned_view(weights, structure, plan).specs
    lost = {
        name: spec.elements - (left[name].elements if name in left else 0)
        for name, spec in weights.specs.items()
    }
    # those of the default granularities, whatever the units are
    linears = {m.tensor for axis in subject.opened.structure.axes for m in axis.members}
    removed = sum(lost[name] for name in linears)
    share = removed / max(prunable, 1)
    numbers: dict[str, Any] = {
        "parameters": {"before": total, "after": total - sum(lost.values())},
        "prunable_parameters": {"before": prunable, "after": prunable - removed},
        "removed_share": share,
    }
    if texts.begin is not None:
        numbers["bos"] = texts.begin.to_json()
    if best is not None and best.scores.blend is not None:
        numbers["blend"] = best.scores.blend
    if best is not None and best.search:
        numbers["search"] = best.search
    if best is not None and best.contest:
        numbers["contest"] = list(best.contest)
    if best is not None:  # a plan that is applied may have been edited
        opened, config = subject.opened, subject.config
        numbers |= budget_numbers(opened, config, subject.budget, plan, small)
    return {**numbers, "form": form_numbers(subject, form, share)}


def measure(
    subject: Subject,
    texts: Texts,
    best: Chosen | None,
    plan: Plan,
    small: Cut,
    dense: Sequence[Perplexity],
) -> dict[str, Any]:
    """The same, and numbers of the smaller model itself: its parameters, with the biases that a
    repair adds, what the repair reports, and perplexity beside that of the `dense` model.
    """
    numbers = numbers_of(subject, texts, best, plan, small.form, small.form)
    specs = small.form.weights.specs.values()
    numbers["parameters"]["after"] = sum(spec.elements for spec in specs)
    if small.repair is not None:
        numbers["repair"] = list(small.repair)
    if texts.held_out is not None and dense:
        after = perplexity_of(subject, texts, "after", small)
        numbers["perplexity"] = compared(dense, after)
        numbers["evaluation"] = texts.held_out.to_json()
    return numbers


def perplexity_of(
    subject: Subject, texts: Texts, when: str, small: Cut | None = None
) -> Sequence[Perplexity]:
    """Perplexity of the dense or of a cut model, at the usual windows (none without a text)."""
    held_out, config, source = texts.held_out, subject.config, subject.source
    if held_out is None:
        return ()
    model = source
    if small is not None:
        model = streamed(small.form, subject.opened, source, small.made_by)
    with timed("perplexity"):
        limit = hidden_bytes(config.hidden_gib)
        return held_out.perplexities(model, config.batch, when, limit=limit, store=subject.store)
