"""The YAML at the head of a model card: what is taken over from the original model's, what is new.

https://huggingface.co/docs/hub/model-cards: licence, language, tags and base model belong to what
is made of a model as well.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import belongs

# What `model_index` gives.
Results = Sequence[Mapping[str, Any]]

_CARRIED = ("license", "license_name", "license_link", "language", "base_model", "tags")
_TAGS = ("pruned", "structured-pruning", "secateur")
_RESULTS = "model-index"
# That entry, with the lines that belong to it.
_OLD_RESULTS = re.compile(rf"(?<=\n){_RESULTS}:.*\n(?:(?:[ \t]|- ).*\n|\n)*")
_LONGEST = 2**20  # bytes of a card that are read
_MOST, _WORD = 100, 500  # entries of a list, characters of an entry


def earlier_card(folder: Path | None) -> str | None:
    """The README.md of a model, whatever bytes it holds; None if there is none of its own."""
    if folder is None or not belongs(folder, "README.md"):
        return None
    with (folder / "README.md").open("rb") as file:
        return file.read(_LONGEST).decode("utf-8-sig", errors="replace").replace("\r\n", "\n")


def taken_over(card: str | None) -> dict[str, Any]:
    """What the front matter of a model's `card` says of everything that is made of the model.

    What is not YAML, or not of the hub's kind, says nothing.
    """
    from huggingface_hub import ModelCard

    if card is None or not card.startswith("---"):
        return {}
    try:
        data = ModelCard(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # yaml and the hub's own checks raise a dozen kinds
        return {}
    found = {key: _sound(data.get(key)) for key in _CARRIED}
    return {key: value for key, value in found.items() if value}


def front_matter(
    card: str | None,
    hub_name: str | None,
    own: Sequence[str] = _TAGS,
    results: Results = (),
) -> str:
    """The head of a new card: of the original model's `card` and its name on the hub, if known.

    `own` are the tags that come before those of the original, `results` those of `model_index`.
    """
    data: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    earlier = taken_over(card)
    data |= {key: value for key, value in earlier.items() if key != "tags"}
    if hub_name is not None:
        data["base_model"] = hub_name
    theirs = earlier.get("tags", [])
    tags = [*own, *([theirs] if isinstance(theirs, str) else theirs)]
    data["tags"] = list(dict.fromkeys(tags))
    return _block(data | ({_RESULTS: list(results)} if results else {}))


def with_base(card: str, hub_name: str | None) -> str:
    """`card` (of a model that goes on) with the base model in its head, where it names none."""
    if hub_name is None or "base_model" in taken_over(card):
        return card
    return _with_entry(card, {"base_model": hub_name})


def with_results(card: str, results: Results) -> str:
    """`card` (of a model that goes on) with these `results`, and without those that it had.

    They were another model's numbers; the name that they had stays. What cannot be read stays as it
    is.
    """
    from huggingface_hub import RepoCard

    try:
        read = RepoCard(card, ignore_metadata_errors=True)
        data = read.data.to_dict()
        if _RESULTS in data:
            old = data.pop(_RESULTS)
            shorter = _OLD_RESULTS.sub("", card, count=1)
            left = RepoCard(shorter, ignore_metadata_errors=True).data.to_dict()
            card = shorter if left == data else _block(data) + read.text
            results = [{**one, "name": _named(old) or one["name"]} for one in results]
    except Exception:  # yaml and the hub's own checks raise a dozen kinds
        return card
    return _with_entry(card, {_RESULTS: list(results)}) if results else card


def _named(results: Any) -> str | None:
    """The model that results are of, as their card calls it."""
    first = results[0] if isinstance(results, list) and results else None
    name = first.get("name") if isinstance(first, dict) else None
    return name if isinstance(name, str) else None


def licence_line(card: str | None, names: list[str], base: str) -> str | None:
    """Under which licence the result stands; `names` are the files that say so."""
    data = taken_over(card)
    licence = data.get("license_name") or data.get("license")
    if not licence and not names:
        return None
    stated = f": {licence}" if isinstance(licence, str) else ""
    return f"That of {base}{stated}" + (f"; see {', '.join(names)}" if names else "") + "."


def licence_files(folder: Path) -> list[str]:
    """The names of the files that say what may be done with a model."""
    starts = ("license", "licence", "notice", "use_policy", "copying", "copyright")
    return sorted(p.name for p in folder.iterdir() if p.name.lower().startswith(starts))


def _sound(value: Any) -> str | list[str] | None:
    """A word or a list of words; anything else is not what a card has there."""
    if value is False:
        return "no"  # Norwegian, by YAML 1.1
    if isinstance(value, str):
        return value[:_WORD]
    if isinstance(value, list):
        words = [word for word in map(_sound, value[:_MOST]) if isinstance(word, str)]
        return words or None
    return None


def _with_entry(card: str, data: Mapping[str, Any]) -> str:
    """`card` with more at its head, where all else stays as it was written."""
    entry = _block(data).removeprefix("---\n").removesuffix("---\n")
    if card.startswith("---\n"):
        return f"---\n{entry}{card[4:]}"
    return f"---\n{entry}---\n\n{card}"


def _block(data: Mapping[str, Any]) -> str:
    from huggingface_hub import CardData

    return f"---\n{CardData(**data).to_yaml().strip()}\n---\n"
