"""Config keys that transformers 5 renamed, written in both spellings.

Older transformers and other engines read `rope_theta`, `rope_scaling` and `torch_dtype`, and take
a default, in silence, where only the new keys are there.
"""

from collections.abc import Mapping
from typing import Any

# model_type: how it spelled the base and the rotated share
_OWN_NAMES = {
    "gpt_neox": ("rotary_emb_base", "rotary_pct"),
    "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct"),
}
_USUAL = ("rope_theta", "partial_rotary_factor")
_LOCAL = "rope_local_base_freq"  # Gemma-3's base of the layers that slide


def both_spellings(raw: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """`raw` (a config.json) with the old spelling beside the new one, where only that is there.

    `config` is transformers' reading of it, which stays the same.
    """
    rope = raw.get("rope_parameters")
    added = dict(_old_rope(rope, str(config.model_type))) if isinstance(rope, Mapping) else {}
    if raw.get("dtype") is not None:
        added["torch_dtype"] = raw["dtype"]
    if hasattr(config, "tie_word_embeddings"):
        added["tie_word_embeddings"] = config.tie_word_embeddings
    return {**{key: value for key, value in added.items() if key not in raw}, **raw}


def _old_rope(rope: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    model_type = model_type.removeprefix("secateur_")
    nested = [one for one in rope.values() if isinstance(one, Mapping) and "rope_type" in one]
    whole = rope.get("full_attention") if nested else rope
    if not isinstance(whole, Mapping):
        return {}
    names = zip(_USUAL, _OWN_NAMES.get(model_type, _USUAL), strict=True)
    old = {name: whole[key] for key, name in names if key in whole}
    scaled = whole.get("rope_type", "default") != "default"
    old["rope_scaling"] = {k: whole[k] for k in whole if k not in _USUAL} if scaled else None
    local = rope.get("sliding_attention") if nested else None
    if isinstance(local, Mapping) and local.get("rope_theta") != whole.get("rope_theta"):
        old[_LOCAL] = local.get("rope_theta")
    return old
