"""Writing a checkpoint in the layout of the stock class that computes the same."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from ..errors import SecateurError
from ..export import Form, copy_companions, pruned_form, write_model
from ..models import OpenModel, open_model
from ..progress import Progress, Quiet
from ..structure import Plan
from .checks import check_space, target, tokenizer_to_write
from .session import path_of


@dataclass(frozen=True)
class Conversion:
    """What was written where; `bytes` are those of the weight files."""

    out: Path
    architecture: str
    parameters: int
    bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return {
            "out": str(self.out),
            "architecture": self.architecture,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "notes": list(self.notes),
        }


def convert(
    model: str | Path,
    *,
    out: str | Path,
    force: bool = False,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write `model` to the folder `out` with the config and the tensors that `open_model` gives.

    That is the stock layout of an adapted model, and floating-point weights for one in few bits.

    `model` is a checkpoint folder or a name on the hub; `tokenizer` replaces its own. One shard is
    in memory at a time.

    Raises:
        SecateurError: bad input, or a model that needs no conversion; nothing was written.
    """
    opened = open_model(model)
    if opened.adapter is None and not opened.packed:
        raise SecateurError(
            f"{opened.source} needs no conversion: transformers has its family,"
            f" {opened.config.model_type}.\nUse it as it is: secateur prune MODEL --out DIR"
        )
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        (progress or Quiet()).note(text)

    out = path_of(out)
    form = _floating(opened) if opened.packed else Form(opened.raw_config, opened.weights, True)
    with target(out, force, opened) as folder:
        assert folder is not None  # there is a path
        check_space(folder, form)
        size = write_model(folder, form)
        copy_companions(
            folder,
            opened.folder,
            tokenizer=tokenizer_to_write(opened, tokenizer, note),
            model=None,
            adapted=opened.adapter is not None,
        )
        write_conversion(folder, opened.source)
    parameters = sum(spec.elements for spec in form.weights.specs.values())
    architecture = str(form.config["architectures"][0])
    return Conversion(out, architecture, parameters, size, tuple(notes))


def write_conversion(folder: Path, model: str) -> None:
    """Write conversion.toml, by which the folder is known as ours."""
    versions = {name: version(name) for name in ("secateur", "torch", "transformers")}
    record = {"settings": {"model": model}, "versions": versions}
    (folder / "conversion.toml").write_text(tomli_w.dumps(record), encoding="utf-8")


def _floating(opened: OpenModel) -> Form:
    """The model with the floating-point weights that its codes stand for."""
    structure = opened.structures
    plan = Plan({}, structure.architecture, structure.weights)
    return pruned_form(
        opened.family, opened.raw_config, opened.config, structure, plan, opened.weights
    )
