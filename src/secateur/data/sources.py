"""Text by name: a file, a folder of files, a data set of the hub, or the text in this package.

A source gives documents, and every document is tokenised on its own (so that it begins with the
tokenizer's first token, where it has one). A .txt file is one document, or several if it has lines
`<|endoftext|>`; a .jsonl file is one document a line, in the field `text`.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from ..errors import SecateurError

Use = Literal["calibration", "evaluation"]

EMBEDDED = "embedded"
SEPARATOR = "<|endoftext|>"
_SUFFIXES = (".txt", ".jsonl")
_SHUFFLE_BUFFER = 10_000


@dataclass(frozen=True, slots=True)
class HubSet:
    """A text data set on the Hugging Face hub.

    `files` names data files for each use (script data sets of old are read from the hub's own
    parquet conversion that way); without it the data set's `calibration` and `evaluation` splits
    are read. `joined` data sets are one text, cut into rows: they become one document again.
    """

    path: str
    config: str | None = None
    field: str = "text"
    calibration: str = "train"
    evaluation: str = "test"
    revision: str | None = None
    files: tuple[str, str] | None = None
    joined: bool = False


_PARQUET = "refs/convert/parquet"
HUB_SETS = {
    "wikitext2": HubSet("Salesforce/wikitext", "wikitext-2-raw-v1", joined=True),
    "c4": HubSet(
        "allenai/c4",
        files=("en/c4-train.00000-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz"),
    ),
    "ptb": HubSet(
        "ptb-text-only/ptb_text_only",
        field="sentence",
        revision=_PARQUET,
        files=("penn_treebank/train/*.parquet", "penn_treebank/validation/*.parquet"),
        joined=True,
    ),
    "bookcorpus": HubSet(
        "bookcorpus/bookcorpus",
        revision=_PARQUET,
        files=("plain_text/train/*.parquet", "plain_text/train/*.parquet"),
    ),
}


def documents(source: str, *, use: Use, seed: int | None) -> Iterator[str]:
    """Documents of `source`, shuffled by `seed` (None: in their own order).

    Raises:
        SecateurError: no such file or data set, nothing in it, or it cannot be read.
    """
    if source == EMBEDDED:
        name = "calibration.txt" if use == "calibration" else "heldout.txt"
        yield from _shuffled(_file(embedded_folder() / name), seed)
        return
    path = Path(source).expanduser()
    if path.exists():
        yield from _shuffled(_folder(path) if path.is_dir() else _file(path), seed)
        return
    if source in HUB_SETS:
        yield from hub_documents(HUB_SETS[source], use=use, seed=seed)
        return
    a_file = path.suffix in (*_SUFFIXES, ".json") or source.startswith((".", "/", "~"))
    if a_file or source.count("/") != 1:
        # The model writes calibration text of its own ("self"), but is not measured on it.
        names = [*HUB_SETS, *(["self"] if use == "calibration" else []), EMBEDDED]
        nearest = get_close_matches(source.lower(), names, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise SecateurError(
            f"No such text: {source}.{hint}\nGive a .txt or .jsonl file, a folder of them, a data"
            f" set of the hub like owner/name, or one of {', '.join(names)}."
        )
    yield from hub_documents(HubSet(source), use=use, seed=seed)


def embedded_folder() -> Path:
    """The folder of the model that this package ships."""
    return Path(__file__).parent.parent / EMBEDDED


def hub_reachable() -> bool:
    """Whether the Hugging Face hub answers, asked once and without retries."""
    import huggingface_hub

    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
    except Exception:  # no network, a proxy that refuses, HF_HUB_OFFLINE: the answer is no
        return False
    return True


def hub_documents(data_set: HubSet, *, use: Use, seed: int | None) -> Iterator[str]:
    """Documents of a data set of the hub, streamed: nothing is downloaded beyond what is read.

    Raises:
        SecateurError: as `hub_rows`, or the data set has no such text field.
    """
    texts = (_field(row, data_set) for row in hub_rows(data_set, use=use, seed=seed))
    if data_set.joined:
        yield "\n\n".join(texts)
    else:
        yield from (text for text in texts if text.strip())


def hub_rows(data_set: HubSet, *, use: Use, seed: int | None) -> Iterator[Any]:
    """Rows of a data set of the hub, streamed.

    Raises:
        SecateurError: `datasets` is not installed, the hub is out of reach, or no such data set.
    """
    try:
        import datasets
    except ImportError as error:
        raise SecateurError(
            f"Reading {data_set.path} from the hub needs the package datasets.\n"
            'Type: pip install "secateur[hub]", or give a local .txt or .jsonl file.'
        ) from error
    if not Path(data_set.path).exists() and not hub_reachable():
        raise SecateurError(
            f"The data set {data_set.path} is on the Hugging Face hub, which does not answer.\n"
            "Check the network, or give a local .txt or .jsonl file."
        )
    split = data_set.calibration if use == "calibration" else data_set.evaluation
    arguments: dict[str, Any] = {"revision": data_set.revision, "streaming": True}
    if data_set.files:
        split = "wanted"
        file = data_set.files[0 if use == "calibration" else 1]
        arguments["data_files"] = {split: file}
    try:
        rows = datasets.load_dataset(data_set.path, data_set.config, split=split, **arguments)
        if seed is not None and not data_set.joined:
            rows = rows.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        yield from rows
    except SecateurError:
        raise
    except Exception as error:  # the hub and its readers raise dozens of kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SecateurError(
            f"The data set {data_set.path} cannot be read from the hub: {reason[:200]}\n"
            "Check the name and the network, or give a local .txt or .jsonl file."
        ) from error


def _field(row: Any, data_set: HubSet) -> str:
    if data_set.field not in row:
        raise SecateurError(
            f"The data set {data_set.path} has no field {data_set.field!r}"
            f" (it has {', '.join(map(str, row))}). Export it to a .jsonl file with 'text'."
        )
    return str(row[data_set.field])


def _shuffled(texts: list[str], seed: int | None) -> list[str]:
    if seed is not None:
        random.Random(seed).shuffle(texts)
    return texts


def _folder(folder: Path) -> list[str]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    if not files:
        raise SecateurError(
            f"{folder} has no .txt or .jsonl file in it. Give a folder with some, or one file."
        )
    return [text for file in files for text in _file(file)]


def _file(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SecateurError(
            f"Cannot read {path}: {reason}. Give a UTF-8 .txt or .jsonl."
        ) from error
    parts = _jsonl(text, path) if path.suffix == ".jsonl" else text.split(SEPARATOR)
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise SecateurError(f"{path} has no text in it. Give a .txt or .jsonl file with some.")
    return found


def _jsonl(text: str, path: Path) -> Iterator[str]:
    expected = 'expected an object like {"text": "..."} on each line'
    for number, line in enumerate(text.split("\n"), start=1):  # text itself may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SecateurError(
                f"{path}, line {number} is not JSON ({error.msg}): {expected}."
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise SecateurError(f"{path}, line {number} has no text: {expected}.")
        yield row["text"]
