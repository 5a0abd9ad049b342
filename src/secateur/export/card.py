"""The README.md of a pruned folder: what was done, and the numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..models import OpenModel
from .around import WholeForm
from .form import Form
from .front_matter import (
    Results,
    earlier_card,
    front_matter,
    licence_line,
    with_base,
    with_results,
)
from .loading import about_custom
from .markdown import inline, row, without_place, without_places

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
from transformers import AutoModelForCausalLM  # reads modeling_secateur.py
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", trust_remote_code=True)
```

The tokenizer needs no code of the folder:

```python
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder", trust_remote_code=False)
```"""

_HOW_WHOLE = """\
Every layer of the text decoder has the same widths: it is a plain `{architecture}` checkpoint, and
what is around the decoder is as it was.

```python
from transformers import {architecture}
model = {architecture}.from_pretrained("path/to/this/folder")
```"""

_HOW_STOCK = """\
Every layer has the same widths: it is a plain `{architecture}` checkpoint.

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```"""


def model_card(
    opened: OpenModel,
    form: Form,
    *,
    cut: str,
    settings: Mapping[str, Any],
    numbers: Sequence[tuple[str, str, str]],
    layers: Sequence[tuple[int | str, str, str]],
    evaluated_on: str,
    results: Results = (),
    licences: Sequence[str] = (),
) -> str:
    """The card of `opened` pruned to `form`, as Markdown.

    The licence, language and tags of the original's card are taken over; `licences` are the files
    that say more. `cut` says what went (MLP channels, say), `numbers` are (what, before, after),
    `layers` (layer, heads, width), `results` those of `model_index`.
    """
    earlier = earlier_card(opened.folder)
    base, evaluated_on = inline(opened.name), inline(without_places(evaluated_on, settings))
    licence = licence_line(earlier, list(licences), base)
    lines = [
        front_matter(earlier, opened.hub_name, results=results),
        f"# {base}, pruned",
        "",
        f"{cut} were cut out of {base} with Secateur.",
        "",
        *_table("| | before | after |", numbers),
        evaluated_on,
        "",
        "## Loading",
        "",
        _how(opened, form),
        "",
        *about_custom(form.why),
        *(["## Licence", "", inline(licence), ""] if licence else []),
        "## How it was made",
        "",
        *_table("| setting | value |", ((key, without_place(v)) for key, v in settings.items())),
        "`secateur prune --config run.toml --out DIR` repeats it; `plan.json` says which units"
        " stayed.",
        "",
        "## Layers",
        "",
        *_table("| layer | attention heads (of which KV) | MLP width |", layers),
    ]
    return "\n".join(lines)


def conversion_card(
    opened: OpenModel, form: Form, *, what: str, licences: Sequence[str] = ()
) -> str:
    """The card of a model that was written in another layout and computes the same.

    `what` says what was done to its weights; the rest is as in `model_card`.
    """
    earlier, base = earlier_card(opened.folder), inline(opened.name)
    licence = licence_line(earlier, list(licences), base)
    lines = [
        front_matter(earlier, opened.hub_name, ("secateur",)),
        f"# {base}, converted",
        "",
        f"{base} in floating point, written by Secateur: the weights are {inline(what)}. Nothing"
        " was pruned or trained for that.",
        "",
        "## Loading",
        "",
        _how(opened, form),
        "",
        *about_custom(form.why),
        *(["## Licence", "", inline(licence), ""] if licence else []),
        "`conversion.toml` names the model and the versions that it was written with.",
        "",
    ]
    return "\n".join(lines)


def recovery_card(
    opened: OpenModel,
    form: Form,
    *,
    data: Mapping[str, Any],
    numbers: Sequence[tuple[str, str, str]],
    evaluated_on: str,
    settings: Mapping[str, Any],
    steps: tuple[int, int],
    trained: tuple[str, int],
    results: Results = (),
) -> str:
    """The card of `opened` after a recovery: the one it had, if it had one, and what was trained.

    `steps` are those made and the one that was kept, `trained` what and how many parameters,
    `results` those of `model_index`.
    """
    earlier = earlier_card(opened.folder)
    if earlier is None:
        head = "---\nlibrary_name: transformers\n---\n"
        how = _how(opened, form)
        earlier = "\n".join([head, f"# {inline(opened.name)}", "", "## Loading", "", how])
    packed = settings["recipe"] == "groupwise"
    told = form.stock or "modeling_secateur.py" in earlier
    loading = [] if told else _HOW_OWN.splitlines()
    on = inline(without_places(evaluated_on, settings))
    source = inline(without_places(str(data["source"]), settings))
    lines = [
        with_results(with_base(earlier, opened.hub_name), results).rstrip(),
        "",
        "## Recovery",
        "",
        f"After the cut it was trained ({settings['recipe']}): {trained[0]}; {trained[1]:,}"
        f" parameters, {steps[0]:,} steps of which the state after step {steps[1]:,} is kept. The"
        f" steps draw from {data['tokens']:,} tokens in {data['examples']:,} examples of {source}"
        f" (SHA-256 {data['sha256'][:16]}; {data['held_out']:,} held out).",
        "",
        *_table("| | before | after |", numbers),
        *([on, ""] if on else []),
        *_table("| setting | value |", ((key, without_place(v)) for key, v in settings.items())),
        "`recovery.toml` has every setting and number.",
        "",
        *(["## Loading after the recovery", "", *loading, ""] if loading else []),
        *(
            about_custom(form.why, packed=packed)
            if packed or "per_layer_config" not in earlier
            else []
        ),
    ]
    return "\n".join(lines)


def _table(head: str, rows: Iterable[Iterable[object]]) -> list[str]:
    """Lines of Markdown, an empty one at the end."""
    return [head, "|---" * (head.count("|") - 1) + "|", *map(row, rows), ""]


def _how(opened: OpenModel, form: Form) -> str:
    """How to load the folder."""
    how = _HOW_WHOLE if isinstance(form, WholeForm) else _HOW_STOCK if form.stock else _HOW_OWN
    return how.format(architecture=form.architecture if form.stock else opened.family.model)
