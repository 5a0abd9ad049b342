"""Pruning, from top to bottom: the recipes of `prune` and `apply`."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from ..arguments import (
    a_flag,
    a_model,
    a_progress,
    a_tokenizer,
    a_word,
    an_output,
    of_kind,
    optional,
    public,
)
from ..config import PruneSettings, make_config
from ..errors import ArgumentError
from ..progress import Progress, note, telling
from ..structure import Plan
from .checks import output_folder, path_of
from .contest import best_of, cut_by, look_for, read_for, ways_of
from .cutting import cut, foreseen_form
from .keeping import Stored, keeping
from .look import read_plan
from .measuring import measure, numbers_of, perplexity_of
from .passes import look, needs_of_repair, sees_tokens
from .planned import config_of
from .publishing import publish
from .pushing import pushing
from .record import write_plan
from .result import Result
from .room import check_room, check_room_of_plan
from .subject import name_of, open_subject
from .texts import named, read_texts, texts_of


def _a_plan(name: str, value: Any) -> Plan:
    """A plan, or where one can be read."""
    if isinstance(value, Plan):
        return value
    if isinstance(value, Mapping):
        return Plan.from_raw(value)
    if not isinstance(value, str | PathLike):
        raise ArgumentError(
            f"{name} must be a Plan, a plan.json or its folder, not {of_kind(value)}."
        )
    return read_plan(Path(value))


@public(
    model=a_model,
    out=optional(an_output),
    force=a_flag,
    push_to_hub=optional(a_word),
    private=a_flag,
    dry_run=a_flag,
    tokenizer=a_tokenizer,
    fresh=a_flag,
    progress=a_progress,
)
def prune(
    model: str | Path | nn.Module,
    *,
    out: str | Path | None = None,
    force: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    tokenizer: Any = None,
    store: Stored = None,
    fresh: bool = False,
    progress: Progress | None = None,
    **settings: Unpack[PruneSettings],
) -> Result:
    """Prune `model` and write the smaller one to the folder `out`.

    `model` is a checkpoint folder, a name on the hub, or a live transformers module (then give its
    `tokenizer`; with `out` None the pruned model comes from `Result.load()`). `settings` are the
    fields of `PruneConfig`: method, ratio, layers, align, calibration, seed and so on. In the place
    of a name, `calibration` and `evaluate` may be text: a list of strings, rows with text in them
    (a `datasets.Dataset`, streamed or not), or tokens as a tensor [window, token].

    What passes over the layers find is kept in the folder `store`, for other ratios, repairs and
    methods; without one it is kept beside `out` until the run is done, so that the same call goes
    on where a kill left it. `fresh` looks anew.

    Once it is whole, the folder is uploaded to `push_to_hub`, a name on the hub ("owner/name");
    `private`, if there is none of that name yet. Name, login and connection are looked at first.

    Raises:
        SecateurError: bad input; nothing was written. Or the upload failed; the folder is whole.
    """
    out = path_of(out)
    names, given = named(settings)
    with (
        telling(progress) as told,
        pushing(push_to_hub, None if dry_run else out, private=private),
    ):
        opened = open_subject(model, make_config(model=name_of(model), **names), tokenizer)
        ways = ways_of(opened, opened.config)
        with (
            output_folder(out, force, opened.opened, *texts_of(opened)) as folder,
            keeping(store, folder, out, fresh=fresh) as kept,
        ):
            if not dry_run:
                check_room(folder, ways[0])
            ways, texts = read_for(ways, kept, given, measure=not dry_run)
            seen = look_for(ways, ways[0].scored, texts.tokens)
            best = best_of(ways, texts.tokens, seen)
            if dry_run:
                numbers = numbers_of(
                    best.subject, texts, best, best.plan, foreseen_form(best.subject, best.plan)
                )
                if folder is not None:
                    write_plan(
                        folder, best.subject.opened.weights, best.subject.structure, best.plan
                    )
                return Result.of(best.subject, best.plan, numbers, told, None, out)
            small = cut_by(best, texts.tokens, seen)
            dense = perplexity_of(best.subject, texts, "before")
            numbers = measure(best.subject, texts, best, best.plan, small, dense)
            if folder is not None:
                numbers = publish(folder, best.subject, best, best.plan, small, numbers, texts)
            return Result.of(best.subject, best.plan, numbers, told, small.form, out)


@public(
    model=a_model,
    plan=_a_plan,
    out=optional(an_output),
    force=a_flag,
    push_to_hub=optional(a_word),
    private=a_flag,
    tokenizer=a_tokenizer,
    fresh=a_flag,
    progress=a_progress,
)
def apply(
    plan: Plan | str | Path | Mapping[str, Any],
    model: str | Path | nn.Module,
    *,
    out: str | Path | None = None,
    force: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    tokenizer: Any = None,
    store: Stored = None,
    fresh: bool = False,
    progress: Progress | None = None,
    **settings: Unpack[PruneSettings],
) -> Result:
    """Cut `model` by a plan made before, perhaps edited since; the repair is done anew.

    `plan` is a `Plan`, the path of a plan.json (or of a folder that has one), or what it holds.
    `settings` override what the plan records (its repair, its calibration text and seed). `store`,
    `fresh`, `push_to_hub` and `private` are those of `prune`.

    Raises:
        SecateurError: bad input, or a plan for another architecture; nothing was written.
    """
    assert isinstance(plan, Plan), "its check makes one of all that it takes"
    out = path_of(out)
    names, given = named(settings)
    with telling(progress) as told, pushing(push_to_hub, out, private=private):
        config = config_of(plan, {**names, "model": name_of(model)})
        subject = open_subject(model, config, tokenizer).asked(config)
        plan.check(subject.structure)
        if not any(map(plan.removed, subject.structure.axes)):
            note("nothing is removed: the plan keeps every unit")
        if plan.weights != subject.structure.weights:
            note("the plan was made for other weights of the same architecture")
        with (
            output_folder(out, force, subject.opened, *texts_of(subject)) as folder,
            keeping(store, folder, out, fresh=fresh) as kept,
        ):
            check_room_of_plan(folder, subject, plan)
            subject = subject.keeping(kept)
            needs = needs_of_repair(subject.config)
            subject, texts = read_texts(
                subject, given, calibrate=sees_tokens(needs, subject.config)
            )
            if texts.windows is not None and "calibration" not in settings:
                _tell_of_text(plan)
            # an edited plan may cut layers that the settings did not ask for
            seen = look(subject, subject.everywhere, texts.tokens, [needs]).of(needs)
            small = cut(subject, plan, texts.tokens, seen)
            dense = perplexity_of(subject, texts, "before")
            numbers = measure(subject, texts, None, plan, small, dense)
            if folder is not None:
                numbers = publish(folder, subject, None, plan, small, numbers, texts)
            return Result.of(subject, plan, numbers, told, small.form, out)


def _tell_of_text(plan: Plan) -> None:
    """A text of this machine that nobody typed is read: say so."""
    text = plan.calibration.get("calibration")
    if text is not None and Path(str(text)).expanduser().exists():
        note(f"the text {text} is read, which the plan names")
