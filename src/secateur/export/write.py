"""A checkpoint folder of transformers: safetensors, config.json, the modelling file."""

import json
import shutil
from pathlib import Path

from .. import modeling_secateur
from ..checkpoint import write_shards
from .exporters import exporter
from .form import Form


@exporter("safetensors")
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
