"""Files of every kind are read as what they are; what is no text is named."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import bound, tiny_tokenizer
from secateur.cli.main import run
from secateur.data import (
    documents,
    instruction_examples,
    is_instructions,
    rows,
    shuffle,
    text_files,
)
from secateur.errors import SecateurError
from secateur.progress import telling

TEXTS = ['one, "two"\nthree', "café {braces}", "last"]


def read(path: Path, seed: int | None = None, **options: Any) -> list[str]:
    return list(documents(str(path), use="calibration", seed=seed, **options))


def as_csv(delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([("id", "text"), *enumerate(TEXTS)])
    return out.getvalue().encode()


def as_parquet() -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"id": range(3), "text": TEXTS}), out)
    return out.getvalue()


LINES = "\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS).encode()
WRITTEN: dict[str, Callable[[], bytes]] = {
    "a.txt": lambda: "<|endoftext|>".join(TEXTS).encode(),
    "a.jsonl": lambda: LINES,
    "a.ndjson": lambda: LINES,
    "a.JSONL": lambda: LINES,
    "lines.json": lambda: LINES,
    "list.json": lambda: json.dumps([{"text": text} for text in TEXTS], indent=1).encode(),
    "strings.json": lambda: json.dumps(TEXTS).encode(),
    "inside.json": lambda: json.dumps({"n": 3, "rows": [{"text": t} for t in TEXTS]}).encode(),
    "column.json": lambda: json.dumps({"text": TEXTS}).encode(),
    "a.csv": lambda: as_csv(","),
    "semicolons.csv": lambda: as_csv(";"),
    "a.tsv": lambda: as_csv("\t"),
    "a.parquet": as_parquet,
    "a.jsonl.gz": lambda: gzip.compress(LINES),
    "a.csv.bz2": lambda: bz2.compress(as_csv(",")),
    "a.json.xz": lambda: lzma.compress(LINES),
    "a.txt.gz": lambda: gzip.compress("<|endoftext|>".join(TEXTS).encode()),
}


@pytest.mark.parametrize("name", list(WRITTEN))
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_a_file_is_read_as_what_it_is(name: str, mark: bytes, tmp_path: Path) -> None:
    content = WRITTEN[name]()
    plain = not name.endswith((".parquet", ".gz", ".bz2", ".xz"))
    (tmp_path / name).write_bytes(mark + content if plain else content)
    assert read(tmp_path / name) == TEXTS


def test_zstandard_is_read_and_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"anything")
    missing = text_files._EXTRAS | {"nothing_of_that_name": ("zst", ".zst files")}
    monkeypatch.setattr(text_files, "_EXTRAS", missing)
    with pytest.raises(SecateurError, match=r'pip install "secateur\[zst\]"'):
        text_files.extra("nothing_of_that_name")
    zstandard = pytest.importorskip("zstandard")
    path.write_bytes(zstandard.compress(LINES))
    assert read(path) == TEXTS
    path.write_bytes(zstandard.compress(LINES)[:20])
    with pytest.raises(SecateurError, match=r"Cannot read|no text"):
        read(path)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_json_is_read_by_blocks_of_any_size(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_BLOCK", chunk)
    for name in ("list.json", "lines.json", "inside.json", "strings.json", "a.txt"):
        (tmp_path / name).write_bytes(WRITTEN[name]())
        assert read(tmp_path / name) == TEXTS


CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SHARED = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Why?"}, {"type": "image"}]}]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"TEXT": "a", "title": "b"}, "a"),
        ({"content": "a", "id": 3}, "a"),
        ({"messages": CHAT}, "[user]Why?[assistant]So."),
        ({"conversations": SHARED}, "[user]Why?[assistant]So."),
        ({"messages": PARTS}, "[user]Why?"),
        ({"prompt": "Why?", "completion": "So."}, "Why?\nSo."),
        ({"prompt": "Why? ", "completion": "So."}, "Why? So."),
        ({"question": "Why?", "answer": "So."}, "Why?\nSo."),
        (
            {"Instruction": "Ask.", "output": "Why?"},
            "### Instruction:\nAsk.\n\n### Response:\nWhy?",
        ),
    ],
)
def test_fields_with_text_are_known_by_name(row: Any, text: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    (found,) = read(path, tokenizer=tokenizer)
    assert found.endswith(text)
    assert "instruction" in str(row).lower() or found == text


@pytest.mark.parametrize(
    ("template", "why"), [(None, "is not there"), ("{{ raise_exception('no') }}", "refuses")]
)
def test_conversations_without_a_template_are_joined_and_counted(
    template: str | None, why: str, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    (tmp_path / "a.json").write_text(json.dumps([{"messages": CHAT}, {"conversation": SHARED}]))
    with telling() as told:
        found = read(tmp_path / "a.json", tokenizer=tokenizer)
    assert found == ["Why?\n\nSo."] * 2
    assert len(told.notes) == 1
    assert why in told.notes[0]
    assert "2 conversations" in told.notes[0]


def test_a_field_can_be_named(
    tmp_path: Path, model: Path, text_file: Path, capsys: Any, assert_refused: Any
) -> None:
    lines = text_file.read_text().splitlines()
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": "no", "Body": line}) for line in lines))
    assert read(path, field="body") == lines
    command = ["evaluate", str(model), "--evaluate", str(path), "--json"]
    assert run([*command, "--field", "body"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"][0]["tokens"] > 1000
    assert_refused(*command[:-1], "--field", "corpus", says=["no field 'corpus'", "text, Body"])
    path.write_text(json.dumps({"label": 3, "body": "yes"}))
    assert_refused(*command[:-1], says=["has no text", "label, body", "--field"])
    assert_refused(*command[:-1], "--field", "label", says=["'label' is not text, but int"])
    path.write_text(json.dumps({"Text": 5, "body": "yes"}))
    assert_refused(*command[:-1], says=["'text' is not text, but int", "Text, body", "--field"])


def test_a_blank_field_is_no_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null}\n{"text": " "}\n{"text": "a"}\n')
    assert read(path) == ["a"]


BAD = {
    "utf-16": ("a.txt", "text".encode("utf-16"), "UTF-16"),
    "utf-16, no mark": ("a.jsonl", '{"text": "one"}'.encode("utf-16-le"), "UTF-16"),
    "nul": ("a.txt", b"one\0two three four five", "NUL"),
    "nul later": ("a.txt", b"x" * 5000 + b"\0", "NUL"),
    "latin": ("a.csv", b"text\ncaf\xe9", "not UTF-8"),
    "gzip that is none": ("a.txt.gz", b"text", "Cannot read"),
    "gzip cut off": (
        "a.txt.gz",
        gzip.compress(os.urandom(999).hex().encode())[:-20],
        "Cannot read",
    ),
    "parquet that is none": ("a.parquet", b"PAR1PAR1PAR1", "Cannot read"),
    "json cut off": ("a.json", b'[{"text": "one"}, {"te', "not JSON"),
    "json of no rows": ("a.json", b"7", "has no text"),
    "two lists": ("a.json", b'{"a": ["x"], "b": ["y"]}', "fields are a, b"),
    "nested": ("a.jsonl", b"[" * 100_000, "nested too deeply"),
    "nested list": ("a.json", b"[" * 100_000, "nested too deeply"),
    "digits": ("a.jsonl", b'{"text": ' + b"7" * 5000 + b"}", "too many digits"),
    "digits in a list": ("a.json", b"[" + b"7" * 5000 + b"]", "too many digits"),
    "header alone": ("a.csv", b"text\n", "no text in it"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_is_no_text_is_named(name: str, tmp_path: Path) -> None:
    file, content, says = BAD[name]
    if name.startswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(SecateurError, match=says) as error:
        read(tmp_path / file)
    assert file in str(error.value)
    assert str(error.value).count("\n") <= 1


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LONGEST", 100)
    monkeypatch.setattr(rows, "LONGEST", 100)
    monkeypatch.setattr(rows, "_BLOCK", 10)
    for name in ("a.jsonl", "a.csv", "a.json"):
        (tmp_path / name).write_text(json.dumps({"text": "x" * 999}))
        with pytest.raises(SecateurError, match=r"million characters|field larger"):
            read(tmp_path / name)


def test_half_characters_are_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a\\ud83d b\\ude00"}\n{"text": "whole \\ud83d\\ude00, nul \\u0000"}\n'
    )
    with telling() as told:
        assert read(path) == ["a\ufffd b\ufffd", "whole 😀, nul \ufffd"]
    assert len(told.notes) == 1
    assert told.notes[0].startswith("3 characters")
    path.write_text('{"instruction": "a\\ud83d", "output": "b\\ude00"}\n')
    assert is_instructions(str(path))
    options = {"length": 400, "samples": 1, "seed": 0}
    assert len(instruction_examples(str(path), tiny_tokenizer(), **options)) == 1


def test_bad_files_of_a_folder_are_named_and_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "x.txt").write_bytes(b"\0\0")
    (folder / "x.txt").mkdir()
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "bad.jsonl").write_text("{")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    (folder / "wide.txt").write_bytes("text".encode("utf-16"))
    (folder / "good.txt").write_text("good")
    (folder / "x.txt" / "deep.csv").write_text("text\ndeep\n")
    with telling() as told:
        assert sorted(read(folder)) == ["deep", "good"]
    names = ["bad.jsonl", "gone.txt", "wide.txt"]
    assert [name for note in told.notes for name in names if name in note] == names
    assert len(told.notes) == 3
    (folder / "good.txt").unlink()
    (folder / "x.txt" / "deep.csv").unlink()
    with pytest.raises(SecateurError, match=r"bad\.jsonl"):
        read(folder)


def test_paths_that_cannot_be_are_told_in_one_line(model: Path, assert_refused: Any) -> None:
    for name in ("~nouser-of-that-name/x.txt", "x" * 300):
        assert_refused("evaluate", model, "--evaluate", name, says=["No such text"])


def test_a_file_or_folder_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "texts" / "a.txt"
    path.parent.mkdir()
    path.write_text("text")
    with bound():
        for closed in (path, path.parent):
            closed.chmod(0)
            for place in (path, path.parent):
                with pytest.raises(SecateurError, match="Permission denied"):
                    read(place)
            closed.chmod(0o700)


# --- long texts and many of them ------------------------------------------------------------------


def test_a_long_text_comes_in_parts_that_end_where_words_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for home in ("rows", "sources"):
        monkeypatch.setattr(f"secateur.data.{home}.LONG", 100)
    monkeypatch.setattr(rows, "_BLOCK", 30)
    text = " ".join(f"word{number}" for number in range(200))
    (tmp_path / "a.txt").write_text(f"{text}<|endoftext|>short")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text}))
    *parts, last = read(tmp_path / "a.txt")
    assert last == "short"
    assert " ".join(parts) == text
    assert max(map(len, parts)) <= 100
    parts = read(tmp_path / "b.jsonl")
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 100


def test_no_more_is_read_than_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "first"}\nnot JSON\n')
    assert next(documents(str(path), use="calibration", seed=None)) == "first"


def test_few_texts_are_permuted_and_many_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    texts = [f"text {number:03d}" for number in range(100)]
    expected = list(texts)
    random.Random(5).shuffle(expected)
    assert list(shuffle.shuffled(texts, 5)) == expected
    assert list(shuffle.shuffled(texts, None)) == texts
    monkeypatch.setattr(shuffle, "BUFFER", 200)
    drawn = list(shuffle.shuffled(texts, 5))
    assert sorted(drawn) == texts
    assert drawn not in (texts, expected)
    assert drawn == list(shuffle.shuffled(texts, 5))
    taken = iter(texts)
    assert next(shuffle.shuffled(taken, 5)) in texts
    assert next(taken) > "text 020"  # a part of them was read


def test_long_texts_after_short_ones_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many as there were short ones would wait otherwise, each a thousand times as long."""
    monkeypatch.setattr(shuffle, "BUFFER", 200)
    texts = [f"{number:02}" for number in range(100)] + [
        f"{number:02}" * 50 for number in range(99)
    ]
    read: list[str] = []
    drawn: list[str] = []

    def noted() -> Iterator[str]:
        for one in texts:
            read.append(one)
            yield one

    for text in shuffle.shuffled(noted(), 5):
        drawn.append(text)
        assert sum(map(len, read)) - sum(map(len, drawn)) <= 2 * 200 + 100
    assert sorted(drawn) == sorted(texts)
    assert drawn == list(shuffle.shuffled(texts, 5))


def test_a_field_of_plain_text_is_told_to_be_idle(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    with telling() as told:
        assert read(tmp_path / "a.txt", field="body") == ["plain"]
    assert told.notes == ["--field body changes nothing: the text is not in fields"]
    (tmp_path / "b.jsonl").write_text('{"body": "rows"}')
    with telling() as told:
        assert read(tmp_path, field="body") == ["plain", "rows"]
    assert not told.notes
