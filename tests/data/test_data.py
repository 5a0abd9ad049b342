"""Windows come from the text, by the seed alone, and never overlap."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model, tiny_tokenizer
from secateur.data import (
    HubSet,
    cut,
    documents,
    generated_documents,
    running_text,
    sample_windows,
    token_hash,
)
from secateur.data.sources import hub_documents
from secateur.errors import SecateurError


def sample(texts: list[str], **changes: Any) -> Any:
    settings = {"source": "x", "samples": 6, "length": 10, "seed": 0, **changes}
    return sample_windows(texts, tiny_tokenizer(), **settings)


TEXTS = ["".join(chr(3 + (i * j) % 120) for i in range(1, 200)) for j in (1, 7, 11)]


def test_windows_are_pieces_of_the_text_that_do_not_overlap() -> None:
    running = running_text(TEXTS, tiny_tokenizer(), source="x", at_most=None).ids
    pieces = {tuple(row) for row in cut(running, 10).tolist()}
    windows = sample(TEXTS).ids
    assert windows.shape == (6, 10)
    assert {tuple(row) for row in windows.tolist()} <= pieces
    assert len({tuple(row) for row in windows.tolist()}) == 6


def test_the_seed_alone_decides() -> None:
    assert torch.equal(sample(TEXTS, seed=1).ids, sample(TEXTS, seed=1).ids)
    assert not torch.equal(sample(TEXTS, seed=1).ids, sample(TEXTS, seed=2).ids)
    assert sample(TEXTS, seed=1).sha256 != sample(TEXTS, seed=2).sha256
    ids = torch.arange(6).view(2, 3)
    assert token_hash(ids) != token_hash(ids.view(3, 2))


def test_spare_text_is_disjoint_from_the_windows() -> None:
    windows = sample([TEXTS[0]], samples=1000, spare=True)
    everything = torch.cat([windows.ids.flatten(), windows.spare])
    running = running_text([TEXTS[0]], tiny_tokenizer(), source="x", at_most=None).ids
    used = windows.ids.numel()
    assert torch.equal(everything[:used], running[:used])
    assert torch.equal(windows.spare, running[-len(windows.spare) :])
    assert used + len(windows.spare) <= len(running)
    assert 0.2 < len(windows.spare) / len(running) <= 0.25


def test_a_short_text_gives_the_windows_it_has() -> None:
    assert sample(["a" * 35], samples=100).ids.shape == (3, 10)
    with pytest.raises(SecateurError, match="has 9 tokens, fewer than one window of 10"):
        sample(["a" * 9])


def test_files_folders_and_separators(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps({"text": text, "id": 1}) for text in ("three", "four")) + "\n\n"
    )
    (tmp_path / "c.md").write_text("not text for us")
    read = lambda path, seed=None: list(documents(str(path), use="calibration", seed=seed))  # noqa: E731
    assert read(tmp_path / "a.txt") == ["one", "two"]
    assert read(tmp_path / "b.jsonl") == ["three", "four"]
    assert read(tmp_path) == ["one", "two", "three", "four"]
    assert sorted(read(tmp_path, 3)) == sorted(read(tmp_path))
    assert read(tmp_path, 3) == read(tmp_path, 3)


def test_the_embedded_text_has_disjoint_parts() -> None:
    parts = [
        set("\n".join(documents("embedded", use=use, seed=None)).split("\n\n"))  # type: ignore[arg-type]
        for use in ("calibration", "evaluation")
    ]
    long = [{paragraph for paragraph in part if len(paragraph) > 80} for part in parts]
    assert long[0]
    assert long[1]
    assert not long[0] & long[1]


@pytest.mark.parametrize("joined", [False, True])
def test_hub_data_sets_are_read_by_the_real_library(tmp_path: Path, joined: bool) -> None:
    """The same code, with a local folder in the place of a name on the hub."""
    rows = [{"sentence": f"row {i}"} for i in range(5)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(
            "\n".join(json.dumps({"sentence": f"{split} {row['sentence']}"}) for row in rows)
        )
    source = HubSet(str(tmp_path), field="sentence", joined=joined)
    seed = None if joined else 3
    read = list(hub_documents(source, use="evaluation", seed=seed))
    expected = [f"test row {i}" for i in range(5)]
    assert read == ["\n\n".join(expected)] if joined else sorted(read) == expected
    by_file = HubSet(str(tmp_path), field="sentence", files=("train.jsonl", "test.jsonl"))
    assert next(iter(hub_documents(by_file, use="calibration", seed=None))) == "train row 0"
    with pytest.raises(SecateurError, match=r"has no text.* its fields are sentence(?s:.*)--field"):
        list(hub_documents(HubSet(str(tmp_path)), use="calibration", seed=None))


def test_generated_text_follows_the_seed_and_ends_at_the_end_token() -> None:
    model = tiny_model()
    make = lambda seed: generated_documents(model, length=20, batch=3, seed=seed)  # noqa: E731
    first, again = ([next(stream).tolist() for _ in range(7)] for stream in (make(4), make(4)))
    assert first == again
    assert first != [row.tolist() for row, _ in zip(make(5), range(7), strict=False)]
    for row in first:
        assert row[0] == 1
        assert len(row) <= 20
        assert 2 not in row[1:-1]
    assert len({tuple(row) for row in first}) == 7
