"""Writing a checkpoint in the layout of the stock class that computes the same."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from ..arguments import (
    a_flag,
    a_folder_or_name,
    a_progress,
    a_tokenizer,
    a_word,
    an_output,
    optional,
    public,
)
from ..checkpoint import companions_beside
from ..errors import SecateurError
from ..export import Form, conversion_card, licence_files, whole_form, with_around
from ..models import OpenModel, open_model
from ..progress import Progress, note, telling
from .checks import output_folder, path_of
from .publishing import write_folder
from .pushing import pushing
from .stock import form_facts


@dataclass(frozen=True)
class Conversion:
    """What was written where; `bytes` are those of the weight files."""

    out: Path
    architecture: str
    form: Mapping[str, Any]
    parameters: int
    bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return {**asdict(self), "out": str(self.out), "notes": list(self.notes)}


@public(
    model=a_folder_or_name,
    out=an_output,
    force=a_flag,
    push_to_hub=optional(a_word),
    private=a_flag,
    tokenizer=a_tokenizer,
    progress=a_progress,
)
def convert(
    model: str | Path,
    *,
    out: str | Path,
    force: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    tokenizer: Any = None,
    merge_adapter: bool | None = None,
    dequantise: bool = False,
    text_only: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write `model` to the folder `out` with the config and the tensors that `open_model` gives.

    That is the stock layout of an adapted model, floating-point weights for one in few bits or
    quantised, the two in one of an adapter and its base, the text decoder of a multimodal model
    with `text_only`.

    `model` is a checkpoint folder or a name on the hub; `tokenizer` replaces its own. One shard is
    in memory at a time. `push_to_hub` and `private` are those of `prune`.

    Raises:
        SecateurError: bad input, or a model that needs no conversion; nothing was written.
    """
    out = path_of(out)
    with telling(progress) as told, pushing(push_to_hub, out, private=private):
        opened = open_model(
            model, merge_adapter=merge_adapter, dequantise=dequantise, text_only=text_only
        )
        if not opened.rewritten:
            raise SecateurError(
                f"{opened.source} needs no conversion: transformers has its family,"
                f" {opened.config.model_type}.\nUse it as it is: secateur prune MODEL --out DIR"
            )
        for message in opened.notes:
            note(message)
        form = with_around(_form(opened), opened)
        with output_folder(out, force, opened) as folder:
            assert folder is not None, "there is a path"
            size = write_folder(folder, form, opened, tokenizer=tokenizer)
            write_conversion(folder, opened, form)
    parameters = sum(spec.elements for spec in form.stored.specs.values())
    notes = tuple(told.notes)
    return Conversion(out, form.architecture, form_facts(form), parameters, size, notes)


def write_conversion(folder: Path, opened: OpenModel, form: Form) -> None:
    """Write README.md and conversion.toml, by which the folder is known as ours."""
    versions = {name: version(name) for name in ("secateur", "torch", "transformers")}
    record = {
        "companions": companions_beside(folder),
        "settings": {"model": opened.source},
        "versions": versions,
    }
    (folder / "conversion.toml").write_text(tomli_w.dumps(record), encoding="utf-8")
    card = conversion_card(opened, form, what=_made(opened), licences=licence_files(folder))
    (folder / "README.md").write_text(card, encoding="utf-8")


def _made(opened: OpenModel) -> str:
    """What was done to the weights while they were read, in a few words."""
    if opened.made:
        return opened.made
    if opened.packed:
        return "what its few bits stand for"
    return f"those of a {opened.config.model_type}, under the names of that family"


def _form(opened: OpenModel) -> Form:
    """The model with the floating-point weights that were read."""
    if opened.adapter is not None:
        return Form(opened.raw_config, opened.weights, True)
    return whole_form(opened)
