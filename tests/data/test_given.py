"""Text that Python code hands over has the windows of the same text in a file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from conftest import tiny_tokenizer
from secateur.config import make_recover_config
from secateur.data import GIVEN, documents, running_text
from secateur.errors import SecateurError
from secateur.models import open_model
from secateur.pipeline import prune_and_recover
from secateur.pipeline.training_data import read_data

OPTIONS: dict[str, Any] = {
    "samples": 4, "length": 16, "align": 1, "device": "cpu", "evaluate": "none",
}  # fmt: skip


@pytest.fixture
def lines(text_file: Path, tmp_path: Path) -> tuple[list[str], Path]:
    found = text_file.read_text().splitlines()
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps({"text": line}) for line in found))
    return found, path


def sha(result: Any, tmp_path: Path) -> str:
    return str((result.out / "run.toml").read_text().split("tokens_sha256 = ")[1].split()[0])


@pytest.mark.parametrize("kind", ["strings", "rows", "dataset", "stream", "path"])
def test_given_text_is_calibrated_on_as_that_of_a_file(
    kind: str, model: Path, lines: Any, tmp_path: Path
) -> None:
    texts, path = lines
    expected = secateur.prune(model, calibration=str(path), out=tmp_path / "a", **OPTIONS)
    rows = [{"text": text} for text in texts]
    given: Any = {"strings": texts, "rows": rows, "path": path}.get(kind)
    if given is None:
        datasets = pytest.importorskip("datasets")
        given = datasets.Dataset.from_list(rows)
        given = given.to_iterable_dataset() if kind == "stream" else given
    result = secateur.prune(model, calibration=given, out=tmp_path / "b", **OPTIONS)
    assert sha(result, tmp_path) == sha(expected, tmp_path)
    assert result.config.calibration == (str(path) if kind == "path" else GIVEN)
    assert result.plan.keep == expected.plan.keep


def test_given_tokens_are_the_windows(model: Path, lines: Any, tmp_path: Path) -> None:
    ids = torch.randint(3, 128, (5, 20), generator=torch.Generator().manual_seed(0))
    from secateur.data import token_hash

    options = {key: value for key, value in OPTIONS.items() if key not in ("samples", "length")}
    for given in (ids, ids.to(torch.int32), ids.numpy()):
        result = secateur.prune(model, calibration=given, out=tmp_path / "a", force=True, **options)
        assert token_hash(ids) in sha(result, tmp_path)
        assert result.config.length == 20
    few = secateur.prune(model, calibration=ids, samples=2, out=tmp_path / "b", **options)
    assert token_hash(ids[:2]) in sha(few, tmp_path)
    spare = secateur.prune(model, calibration=ids, device="cpu", align=1)
    assert any("too little text to take perplexity on" in note for note in spare.notes)


def test_given_text_is_measured_on(model: Path, lines: Any, tmp_path: Path) -> None:
    texts, path = lines
    named = secateur.evaluate(model, str(path), evaluate_lengths=[16])
    assert secateur.evaluate(model, texts, evaluate_lengths=[16]) == named
    text = running_text(texts, tiny_tokenizer(), source="x", at_most=None)
    windows = text.windows(16)
    assert secateur.evaluate(model, windows) == named
    pruned = secateur.prune(
        model, calibration=str(path), **{**OPTIONS, "evaluate": texts, "ratio": 0.0}
    )
    assert pruned.numbers["evaluation"]["text"] == GIVEN
    assert pruned.numbers["perplexity"][0]["before"] == secateur.evaluate(model, texts)[0].value


@pytest.mark.parametrize("kind", ["strings", "rows", "tokens"])
def test_given_data_are_trained_on(kind: str, model: Path, lines: Any, tmp_path: Path) -> None:
    texts, path = lines
    config = make_recover_config(model="x", recipe="lora", data=GIVEN, length=16)
    pairs = [{"prompt": f"Say {n}", "completion": f"{n}"} for n in range(9)]
    ids = torch.randint(3, 128, (5, 20), generator=torch.Generator().manual_seed(0))
    given = {"strings": texts, "rows": pairs, "tokens": ids}[kind]
    opened = open_model(model)
    found = read_data(opened, config, texts={"data": given})
    if kind == "strings":
        named = config.model_copy(update={"data": str(path)})
        assert found.examples.sha256 == read_data(opened, named).examples.sha256
    if kind == "rows":
        assert found.trained_tokens == 2 * (len(found.examples) - found.held)
    if kind == "tokens":
        assert sorted(found.examples.ids.tolist()) == sorted(ids.tolist())
    done = secateur.recover(
        model, data=given, out=tmp_path / "out", recipe="lora", steps=1, batch=2, length=20,
        device="cpu", evaluate="none",
    )  # fmt: skip
    assert done.numbers["data"]["source"] == GIVEN


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "no text in what was given"),
        (["", "  "], "no text in what was given"),
        ([{"label": 3}], "fields are label"),
        ([3], "Text 1 has no text"),
        ({"train": ["a"], "test": ["b"]}, r"in parts \(train, test\)"),
        (torch.zeros(2, 3), r"shape \[2, 3\] and torch.float32"),
        (torch.zeros(9, dtype=torch.int64), r"expected whole numbers \[window, token\]"),
        (torch.full((2, 3), -1), "negative"),
        (torch.full((2, 3), 999), "token 999"),
        (torch.zeros(2, 99, dtype=torch.int64), "longer than the context"),
        (5, "calibration = 5 will not do"),
    ],
)
def test_what_is_no_text_is_refused(given: Any, says: str, model: Path) -> None:
    with pytest.raises(SecateurError, match=says):
        secateur.prune(model, calibration=given, evaluate="none")


def test_a_text_that_was_given_is_asked_for_again(model: Path, lines: Any, tmp_path: Path) -> None:
    texts, _ = lines
    made = secateur.prune(model, calibration=texts, dry_run=True, out=tmp_path / "plan", **OPTIONS)
    plan = secateur.pipeline.read_plan(tmp_path / "plan")
    with pytest.raises(SecateurError, match=r"given in Python(?s:.*)--calibration"):
        secateur.apply(plan, model)
    applied = secateur.apply(plan, model, calibration=texts, evaluate="none")
    assert applied.plan.keep == made.plan.keep
    assert list(documents(texts, use="calibration", seed=None)) == texts


def test_given_text_prunes_compares_and_recovers_in_one(
    model: Path, lines: Any, tmp_path: Path
) -> None:
    texts, path = lines
    options = {**OPTIONS, "evaluate": texts}
    rows = secateur.compare(
        model, methods=["magnitude", "flap"], ratios=[0.3], calibration=texts, **options
    )
    assert [row["evaluation"]["text"] for row in rows] == [GIVEN] * 2
    named = secateur.compare(
        model, methods=["flap"], ratios=[0.3], calibration=str(path),
        **{**options, "evaluate": str(path)},
    )  # fmt: skip
    assert named[0]["perplexity"] == rows[1]["perplexity"]


def test_what_can_be_read_only_once_is_not_pruned_and_recovered_on(
    model: Path, lines: Any, tmp_path: Path
) -> None:
    texts, _ = lines
    with pytest.raises(SecateurError, match=r"read only once(?s:.*)Give it as a list"):
        prune_and_recover(
            model, out=tmp_path / "out", recipe="lora", calibration=iter(texts), **OPTIONS
        )
