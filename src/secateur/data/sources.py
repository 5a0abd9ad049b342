"""Text by name: a file, a folder of files, a data set of the hub, or the text in this package.

A source gives documents, and every document is tokenised on its own (so that it begins with the
tokenizer's first token, where it has one). A .txt file is one document, or several if it has lines
`<|endoftext|>`; of other files and of data sets, every row is one (see `fields` for what is text
in a row). Documents of more than `rows.LONG` characters count as several.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from ..errors import SecateurError
from ..progress import note
from .fields import TextOf
from .given import GIVEN, given_documents, is_given
from .rows import LONG, SUFFIXES, file_rows, word_end
from .shuffle import shuffled
from .text_files import READ, extra, kind_of

Use = Literal["calibration", "evaluation"]

EMBEDDED = "embedded"
# So many files of a folder that cannot be read are named one by one.
_NAMED = 3
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
    field: str | None = None
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


def evaluated_part(source: str) -> str:
    """Which part of a known data set perplexity is taken on; empty for any other name."""
    known = HUB_SETS.get(source)
    if known is None:
        return ""
    return known.files[1] if known.files else f"the split {known.evaluation}"


def documents(
    source: Any,
    *,
    use: Use,
    seed: int | None,
    field: str | None = None,
    tokenizer: Any = None,
) -> Iterator[str]:
    """Documents of `source`, shuffled by `seed` (None: in their own order), read as they are asked
    for.

    `source` is a name, or text itself (strings, rows, a data set of `datasets`). `field` names
    what is text in a row where that does not follow from its name; conversations are written by the
    chat template of `tokenizer`. What was skipped or replaced is told.

    Raises:
        SecateurError: no such file or data set, nothing in it, or it cannot be read.
    """
    text_of = TextOf(field, tokenizer)
    try:
        for text in _texts(source, use, seed, text_of):
            yield from _bounded(text)
    finally:
        for remark in text_of.remarks():
            note(remark)


def check_source(source: Any) -> None:
    """Find out before any work that a package which reads `source` is missing.

    Raises:
        SecateurError: it is.
    """
    if isinstance(source, str) and source not in (EMBEDDED, GIVEN, *HUB_SETS):
        path = local_path(source)
        if path.is_file() and path.suffix.lower() == ".zst":
            extra("zstandard")
        if path.is_file() and kind_of(path) == ".parquet":
            extra("pyarrow")


def local_path(source: str) -> Path:
    """The path that `source` would be.

    Raises:
        SecateurError: its `~` names nobody, or it is no path at all.
    """
    try:
        path = Path(source).expanduser()
        path.exists()
    except (RuntimeError, ValueError, OSError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SecateurError(f"No such text: {source[:200]!r} ({why}).") from error
    return path


def _texts(source: Any, use: Use, seed: int | None, text_of: TextOf) -> Iterator[str]:
    if is_given(source):
        yield from given_documents(source, text_of, seed)
        return
    if source == EMBEDDED:
        name = "calibration.txt" if use == "calibration" else "heldout.txt"
        yield from shuffled(_file(embedded_folder() / name, text_of), seed)
        return
    if source == GIVEN:
        raise SecateurError(
            "The text of that run was given in Python, and is not here.\n"
            "Give one again: --calibration FILE (--evaluate, --data)."
        )
    if not isinstance(source, str):
        raise SecateurError(
            f"A text is a name, or strings, rows or tokens; a {type(source).__name__} is none."
        )
    path = local_path(source)
    if path.is_dir():
        yield from shuffled(_folder(path, text_of), seed)
    elif path.exists():
        yield from shuffled(_file(path, text_of), seed)
    else:
        yield from hub_documents(_hub_set(source, use), use=use, seed=seed, text_of=text_of)


def _hub_set(source: str, use: Use) -> HubSet:
    """The data set that `source` names.

    Raises:
        SecateurError: it looks like a file that is not there, or like nothing.
    """
    if source in HUB_SETS:
        return HUB_SETS[source]
    a_file = kind_of(Path(source)) in SUFFIXES or source.startswith((".", "/", "~"))
    if a_file or source.count("/") != 1:
        # The model writes calibration text of its own ("self"), but is not measured on it.
        names = [*HUB_SETS, *(["self"] if use == "calibration" else []), EMBEDDED]
        nearest = get_close_matches(source.lower(), names, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise SecateurError(
            f"No such text: {source}.{hint}\nGive a .txt or .jsonl file, a folder of them, a data"
            f" set of the hub like owner/name, or one of {', '.join(names)}."
        )
    return HubSet(source)


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


def hub_documents(
    data_set: HubSet, *, use: Use, seed: int | None, text_of: TextOf | None = None
) -> Iterator[str]:
    """Documents of a data set of the hub, streamed: nothing is downloaded beyond what is read.

    Raises:
        SecateurError: as `hub_rows`, or a row has no text.
    """
    text_of = text_of or TextOf()
    text_of.name = text_of.name or data_set.field
    where = f"The data set {data_set.path}"
    texts = (text_of(row, where) for row in hub_rows(data_set, use=use, seed=seed))
    if data_set.joined:
        yield "\n\n".join(texts)
    else:
        yield from (text for text in texts if text.strip())


def hub_rows(data_set: HubSet, *, use: Use, seed: int | None) -> Iterator[Any]:
    """Rows of a data set of the hub, streamed.

    Raises:
        SecateurError: `datasets` is not installed, the hub is out of reach, or no such data set.
    """
    datasets = extra("datasets")
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


def _bounded(text: str) -> Iterator[str]:
    """A text in parts of at most `LONG` characters."""
    while len(text) > LONG:
        end = word_end(text, LONG // 2, LONG)
        yield text[:end]
        text = text[end:]
    yield text


def _folder(folder: Path, text_of: TextOf) -> Iterator[str]:
    """The documents of all files in a folder; those that cannot be read are named and skipped."""
    files = _files(folder)
    if not files:
        raise SecateurError(
            f"{folder} has no .txt or .jsonl file in it.\nGive a folder with some, or one file"
            f" ({READ})."
        )
    bad: list[SecateurError] = []
    read = 0
    for file in files:
        try:
            for text in _file(file, text_of):
                read += 1
                yield text
        except SecateurError as error:
            bad.append(error)
            if len(bad) <= _NAMED:
                note(f"{str(error).splitlines()[0]} It is skipped.")
    if bad and not read:
        raise bad[0]
    if len(bad) > _NAMED:
        note(f"{len(bad)} files of {folder} are skipped, {_NAMED} of them were named")


def _files(folder: Path) -> list[Path]:
    """Files with text in a folder and those below it, but hidden ones, in the order of their names.

    Links that lead nowhere are among them, so that they are told.
    """
    found = []
    for place, folders, names in os.walk(folder, onerror=_no_entry(folder)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(place) / name for name in names if not name.startswith("."))
        found += [path for path in paths if kind_of(path) in SUFFIXES]
    return sorted(found)


def _no_entry(folder: Path) -> Callable[[OSError], None]:
    """What to do where a folder cannot be listed: of the one that was named, say so."""

    def refuse(error: OSError) -> None:
        if error.filename is not None and Path(error.filename) == folder:
            raise SecateurError(f"Cannot read {folder}: {error.strerror}.") from error

    return refuse


def _file(path: Path, text_of: TextOf) -> Iterator[str]:
    found = False
    for where, row in file_rows(path):
        text = text_of(row, f"{path}, {where}" if where else str(path)).strip()
        if text:
            found = True
            yield text
    if not found:
        raise SecateurError(f"{path} has no text in it. Give a file with some ({READ}).")
