"""The files of a checkpoint folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from .. import modeling_secateur
from ..checkpoint import write_shards
from .form import Form

# What belongs to a model besides its weights and config; copied byte for byte.
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "chat_template*",
)
_COMPANIONS = (
    "generation_config.json",
    "processor_config.json",
    "*preprocessor_config.json",
    "LICENSE*",
    "NOTICE*",
)


def write_model(folder: Path, form: Form) -> int:
    """Write weights, config.json and perhaps the modelling file; return the bytes of weights.

    Files are put into `folder` one by one: give it a temporary one (`checkpoint.new_folder`).
    """
    (folder / "config.json").write_text(
        json.dumps(dict(form.written_config), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    if not form.stock:
        shutil.copyfile(Path(modeling_secateur.__file__), folder / "modeling_secateur.py")
    stored = form.stored
    return write_shards(folder, stored.specs, lambda name: stored.tensor(name).detach().cpu())


def copy_companions(
    folder: Path, origin: Path | None, *, tokenizer: Any, model: Any, adapted: bool = False
) -> None:
    """Bring the tokenizer, generation config and licence of the original model along.

    From a folder they are copied; a live `model` (origin None) and its `tokenizer` write theirs.
    The tokenizer files of an `adapted` model may need code that is left behind: `tokenizer` (None:
    none) writes its own instead.
    """
    if origin is not None:
        for pattern in _COMPANIONS if adapted else (*_TOKENIZER, *_COMPANIONS):
            for file in sorted(origin.glob(pattern)):
                if file.is_file():
                    shutil.copyfile(file, folder / file.name)
    if tokenizer is not None and (origin is None or adapted):
        tokenizer.save_pretrained(folder)
    if origin is None and getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
