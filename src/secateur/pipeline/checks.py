"""Checks that a run makes before it spends time or touches a folder."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from ..checkpoint import new_folder, real_path
from ..config import PruneConfig, Reading
from ..errors import SecateurError
from ..export import Form
from ..importance import IMPORTANCE
from ..models import OpenModel
from ..paths import expanded, resolved, typed_path
from ..progress import note
from ..ranks import by_first
from ..registry import choose
from ..search import check_division, check_search
from ..structure import GRANULARITIES, Structure, parse_ranges
from ..surgery import WHOLE


def output_folder(
    path: Path | None, force: bool, *read: OpenModel | str | None, training: bool = False
) -> AbstractContextManager[Path | None]:
    """The folder to write into (see `new_folder`), or nothing at all if `path` is None.

    Of several ranks the first has it, and the others have none.

    `read` are the models and texts that are read: none of them may lie where is written.

    Raises:
        SecateurError: `path` cannot be written, exists, or holds something that is read.
    """
    if path is None:
        return nullcontext(None)
    path = real_path(path)
    for one, source in ((whole, part) for whole in read for part in _sources(whole)):
        place = _place(source)
        if force and place is not None and path in (place, *place.parents):
            what = "the model" if isinstance(one, OpenModel) else str(one)
            raise SecateurError(
                f"--out {path} holds {what} that is read, which --force would delete."
                " Choose another --out."
            )
    return by_first("output", lambda: new_folder(path, force=force, training=training))


def _sources(one: OpenModel | str | None) -> tuple[str | Path | None, ...]:
    return (one.folder, *one.read) if isinstance(one, OpenModel) else (one,)


def _place(source: str | Path | None) -> Path | None:
    """Where something lies that was named by its path; None for all other names."""
    path = None if source is None else typed_path(source)
    return resolved(path) if path is not None and path.exists() else None


def tokenizer_to_write(opened: OpenModel, given: Any) -> Any:
    """The tokenizer that writes its files into the result; None: those of the folder serve.

    An adapted model whose tokenizer does not load has none that would work: the user is told.
    """
    if given is not None or not opened.writes_tokenizer:
        return given
    try:
        return opened.tokenizer
    except SecateurError as error:
        note(f"no tokenizer was written. {error}")
        return None


def tokenizer_class(opened: OpenModel, form: Form) -> str | None:
    """The class that reads the folder's tokenizer, if `form` has another type than the model.

    AutoTokenizer goes by the type where the folder states no class, or one that is known as wrong.
    """
    if form.stock or opened.folder is None or opened.adapter is not None:
        return None
    try:
        return type(opened.tokenizer).__name__
    except SecateurError:  # none, or none that loads
        return None


def vocabulary(opened: OpenModel) -> int:
    """How many tokens the model has embeddings for."""
    return int(opened.skeleton.get_input_embeddings().num_embeddings)  # type: ignore[operator]


def known_ids(ids: Tensor, opened: OpenModel) -> Tensor:
    """`ids`, if the model has an embedding for each."""
    size = vocabulary(opened)
    if ids.numel() and int(ids.max()) >= size:
        raise SecateurError(
            f"The tokenizer gives token {int(ids.max())}, but the model has {size}: it is another"
            " model's, or the text holds a token that was added to it.\nCopy the tokenizer files of"
            " the original model into the folder, or take such tokens out of the text."
        )
    return ids


def selected(opened: OpenModel, granularity: str | None) -> Structure:
    """The structure with the granularities that `granularity` lists, or the default ones.

    Raises:
        SecateurError: one that there is not, or that this model does not have.
    """
    if granularity is None:
        return opened.structure
    names = [name.strip() for name in granularity.split(",")]
    for name in names:
        choose("granularity", name, GRANULARITIES)
    structure = opened.structures.select(names)
    missing = [n for n in names if not any(axis.granularity == n for axis in structure.axes)]
    if missing:
        raise SecateurError(
            f"The model has no units of granularity {missing[0]!r}.\n"
            f"See what it has: secateur discover {opened.source}"
        )
    return structure


def layer_range(
    text: str | None, structure: Structure, what: str = "--layers"
) -> tuple[int, ...] | None:
    """The layers that `text` (4-29), the value of the option `what`, names; None for all.

    Raises:
        SecateurError: not a range, or beyond the model's layers.
    """
    if text is None:
        return None
    layers = parse_ranges(text, what=what, size=structure.layers)
    if not layers:
        raise SecateurError(
            f"{what} names no layer; expected a range like 0-{structure.layers - 1}."
        )
    return layers


def reading_notes(opened: OpenModel, reading: Reading) -> list[str]:
    """What to tell the user of how the model was read, and of settings that changed nothing."""
    notes = [f"the weights are {opened.made}"] if opened.made else []
    if opened.around is not None:
        notes.append(
            f"{opened.source} is multimodal ({opened.around.architecture}); what follows is about"
            f" its text decoder, {opened.family.model}"
        )
    given = {
        "--merge-adapter": (reading.merge_adapter, "adapter", "has no adapter"),
        "--dequantise": (reading.dequantise, "dequantised", "is not quantised"),
        "--text-only": (reading.text_only, "text decoder", "is not multimodal"),
    }
    return notes + [
        f"{option} changes nothing: {opened.source} {lacks}"
        for option, (wanted, done, lacks) in given.items()
        if wanted and done not in opened.made
    ]


def check_settings(structure: Structure, config: PruneConfig) -> None:
    """Find out before any work is done that settings and units do not go together.

    Raises:
        SecateurError: they do not.
    """
    if config.importance is not None and config.fusion is not None:
        raise SecateurError("--importance and --fusion both say what the scores are; give one.")
    _check_rescore(structure, config)
    _check_asking(structure, config)
    _check_experts(structure, config)
    if not config.rescore:
        check_search(config.search_name, structure.axes)
    divided = config.attention_units is not None or config.attention_ratio is not None
    check_division(config.search_name, divided)
    if config.attention_units is not None and config.attention_ratio is not None:
        raise SecateurError(
            "Both --attention-units and --attention-ratio are given; one of them says it all."
        )
    asked = {
        "attention": divided or config.attention_layers is not None,
        "mlp": config.mlp_layers is not None,
    }
    for kind, there in asked.items():
        if there and not any(axis.kind == kind for axis in structure.axes):
            raise SecateurError(
                f"Settings for {kind} are given, and the units (--granularity"
                f" {config.granularity}) have none of it.\nLeave them out, or name other units."
            )
    read = [member.tensor for axis in structure.axes for member in axis.consumers if not axis.of]
    if config.repair_name != "none" and len(set(read)) < len(read):
        raise SecateurError(
            f"Units of --granularity {config.granularity} overlap, and --repair"
            f" {config.repair_name} mends each linear for one kind.\nType --repair none."
        )
    _check_repair_of_coarse(structure, config)
    _check_score_of_hidden(structure, config)


def _check_rescore(structure: Structure, config: PruneConfig) -> None:
    """Scores are taken anew between whole layers, and those of one score."""
    if not config.rescore:
        return
    if any(axis.granularity != "layer" for axis in structure.axes):
        raise SecateurError("--rescore goes layer by layer.\nType --granularity layer with it.")
    if config.fusion_name is not None:
        raise SecateurError(
            f"--rescore takes one score, and {config.fusion_name!r} makes one of two.\n"
            "Type --importance taylor-first (or wifv, magnitude-l2)."
        )


def _check_asking(structure: Structure, config: PruneConfig) -> None:
    """The loss can be asked of units of a layer alone."""
    asks = config.asks_loss or config.asks_gradient
    if asks and any(axis.layer < 0 for axis in structure.axes):
        raise SecateurError(
            f"The search {config.search_name!r} asks what the loss is when units of a layer are"
            " masked, and those of --granularity hidden are in all layers.\nType --search AL-AM."
        )


def _check_experts(structure: Structure, config: PruneConfig) -> None:
    """Candidates are fitted, and stacks of experts are not."""
    if config.asks_divergence and not all(
        consumer.linear for axis in structure.axes for consumer in axis.consumers
    ):
        raise SecateurError(
            f"The search {config.search_name!r} fits linears, and experts of this model are stacked"
            " in one tensor.\nType --search global, or name units without them (--granularity)."
        )


def _check_score_of_hidden(structure: Structure, config: PruneConfig) -> None:
    """Units that all layers share have no one consumer whose input could be looked at."""
    score = config.importance_name
    if score is not None and set(IMPORTANCE[score].needs) <= {"weight", "generator"}:
        return
    for axis in structure.axes:
        if axis.layer < 0:
            raise SecateurError(
                f"The score {score or config.fusion_name!r} looks at the input of one consumer, and"
                f" the {axis.granularity} units have {len(axis.consumers)}.\n"
                "Type --importance magnitude-l2 (or magnitude-l1, random)."
            )


# What mends the residual stream.
_REFITS = ("refit", "refit-no-bias")


def _check_repair_of_coarse(structure: Structure, config: PruneConfig) -> None:
    """What whole layers and blocks leave is mended by a refit to the residual stream alone."""
    coarse = [axis for axis in structure.axes if axis.of or axis.layer < 0]
    repair = config.repair_name
    if not coarse or repair == "none":
        return
    whole = all(axis.granularity in WHOLE for axis in coarse)
    if whole and repair in _REFITS and config.target == "residual":
        return
    if whole:
        raise SecateurError(
            f"--repair {repair} --target {config.target} does not mend what a whole"
            f" {coarse[0].granularity} leaves.\nType --repair refit --target residual, or --repair"
            " none."
        )
    raise SecateurError(
        f"--repair {repair} mends the linears that read KV groups and channels, and"
        f" {coarse[0].granularity} units are read by others.\nType --repair none."
    )


@overload
def path_of(out: str | Path) -> Path: ...
@overload
def path_of(out: None) -> None: ...
def path_of(out: str | Path | None) -> Path | None:
    """A path that the user typed.

    Raises:
        SecateurError: there can be nothing at it.
    """
    if out is None:
        return None
    real_path(expanded(out, "--out"))
    return expanded(out)
