"""Files of GGUF in tests: how they are written, and read back."""

from pathlib import Path
from typing import Any

import gguf
import torch

import secateur

# Rows of 64 and of 56.
BROAD = {
    "hidden_size": 64, "intermediate_size": 56, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
TOKENS = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits.float()
    return found


def written(folder: Path, out: Path, **options: Any) -> Path:
    """The file that a folder is exported to."""
    how: dict[str, Any] = {"type": "f32", "no_tokenizer": True, **options}
    done = secateur.export_model(folder, to="gguf", out=out, **how)
    return out / done.file


def read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {one.name: torch.tensor(one.data) for one in reader.tensors}
    return fields, tensors


def uninterleaved(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Row by row, by the equation."""
    back = torch.empty_like(rows)
    half = head_dim // 2
    for head in range(len(rows) // head_dim):
        for side in range(2):
            for i in range(half):
                back[head * head_dim + side * half + i] = rows[head * head_dim + 2 * i + side]
    return back
