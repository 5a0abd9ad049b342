"""The README.md of a pruned folder: what was done, and the numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from .loading import about_custom

_HOW_OWN = """\
The stock class cannot hold these layers (their widths differ, or do not go with its rules). Any one
of these loads it:

```python
import secateur
model = secateur.load("path/to/this/folder")
```

```python
import secateur  # registers the classes
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer  # reads modeling_secateur.py
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder", trust_remote_code=True)
```"""

_HOW_STOCK = """\
Every layer has the same widths: it is a plain `{architecture}` checkpoint.

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```"""


def model_card(
    *,
    base: str,
    architecture: str,
    stock: bool,
    settings: Mapping[str, Any],
    numbers: Sequence[tuple[str, str, str]],
    layers: Sequence[tuple[int | str, str, str]],
    evaluated_on: str,
    why_not_stock: str = "",
) -> str:
    """The card as Markdown. `numbers` are (what, before, after), `layers` (layer, heads, width)."""
    how = (_HOW_STOCK if stock else _HOW_OWN).format(architecture=architecture)
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [pruned, structured-pruning, secateur]",
        "---",
        "",
        f"# {base}, pruned",
        "",
        f"Whole attention heads and MLP channels were cut out of {base} with Secateur.",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {what} | {before} | {after} |" for what, before, after in numbers),
        "",
        evaluated_on,
        "",
        "## Loading",
        "",
        how,
        "",
        *about_custom(why_not_stock),
        "## How it was made",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in settings.items()),
        "",
        "`secateur prune --config run.toml --out DIR` repeats it; `plan.json` says which units"
        " stayed.",
        "",
        "## Layers",
        "",
        "| layer | attention heads (of which KV) | MLP width |",
        "|---|---|---|",
        *(f"| {layer} | {heads} | {width} |" for layer, heads, width in layers),
        "",
    ]
    return "\n".join(lines)


def recovery_card(
    earlier: str | None,
    *,
    base: str,
    architecture: str,
    stock: bool,
    data: Mapping[str, Any],
    numbers: Sequence[tuple[str, str, str]],
    evaluated_on: str | None,
    settings: Mapping[str, Any],
    steps: tuple[int, int],
    trained: tuple[str, int],
    why_not_stock: str = "",
) -> str:
    """The card after a recovery: the `earlier` one, if the folder had one, and what was trained.

    `evaluated_on` is None if no perplexity was taken;
    `steps` are those made and the one that was kept, `trained` what and how many parameters.
    """
    if earlier is None:
        how = (_HOW_STOCK if stock else _HOW_OWN).format(architecture=architecture)
        earlier = "\n".join(
            ["---", "library_name: transformers", "---", "", f"# {base}", "", "## Loading", "", how]
        )
    packed = settings["recipe"] == "groupwise"
    loading = _HOW_OWN.splitlines() if not stock and "trust_remote_code" not in earlier else []
    lines = [
        earlier.rstrip(),
        "",
        "## Recovery",
        "",
        f"After the cut it was trained ({settings['recipe']}): {trained[0]}, {trained[1]:,}"
        f" parameters, {steps[0]:,} steps of which the state after step {steps[1]:,} is kept, on"
        f" {data['tokens']:,} tokens in {data['examples']:,} examples of {data['source']}"
        f" (SHA-256 {data['sha256'][:16]}; {data['held_out']:,} held out).",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {what} | {before} | {after} |" for what, before, after in numbers),
        "",
        *([f"Perplexity on {evaluated_on}.", ""] if evaluated_on else []),
        "| setting | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in settings.items()),
        "",
        "`recovery.toml` has every setting and number.",
        "",
        *(["## Loading after the recovery", "", *loading, ""] if loading else []),
        *(
            about_custom(why_not_stock, packed=packed)
            if packed or "per_layer_config" not in earlier
            else []
        ),
    ]
    return "\n".join(lines)
