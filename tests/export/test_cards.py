"""The card: what it takes over, what it keeps to itself, and that its lines load."""

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import secateur
from conftest import cached, tiny_model
from secateur.export import model_index

THEIRS = """---
license: llama3.2
license_name: "Llama: a licence"
license_link: LICENSE
language: [en, no, "---"]
base_model: meta/Base
tags:
- facebook
- "x: y"
datasets: [secret/data]
model-index: []
extra: {a: [1, 2]}
---
# Their model

`AutoModel.from_pretrained("theirs", trust_remote_code=True)`
"""
BROKEN: dict[str, bytes] = {
    "not-utf8": b"---\nlicense: mit\n---\n\xff\xfe\x00 caf\xe9",
    "no-yaml": b"---\nlicense: [mit\n: :\n---\n# x",
    "no-end": b"---\nlicense: mit\n",
    "a-list": b"---\n- mit\n---\n",
    "tagged": b"---\nlicense: !!python/object/apply:os.system ['false']\n---\n",
    "other-types": b"---\nlicense: {a: 1}\nlanguage: 2024-01-01\ntags: 7\nbase_model: [[x]]\n---\n",
    "deep": b"---\nlicense: " + b"[" * 5000 + b"\n---\n",
    "empty": b"",
    "bom": b"\xef\xbb\xbf# x",
}


def pruned_to(folder: Any, out: Path, **settings: Any) -> str:
    given = {"method": "magnitude", "ratio": 0, "evaluate": "none", **settings}
    secateur.prune(folder, out=out, **given)
    return (out / "README.md").read_text()


def recovered_to(folder: Path, text: Path, out: Path, **settings: Any) -> str:
    secateur.recover(
        folder, recipe="lora", data=str(text), steps=1, samples=4, length=16, out=out,
        **{"evaluate": "none", **settings},
    )  # fmt: skip
    return (out / "README.md").read_text()


def head(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    found = yaml.safe_load(card[4:].split("\n---\n")[0])
    assert ModelCard(card).data.library_name == "transformers"
    return dict(found)


def test_licence_language_tags_and_base_are_taken_over(tiny_folder: Any, tmp_path: Path) -> None:
    folder = tiny_folder()
    (folder / "README.md").write_text(THEIRS)
    (folder / "LICENSE").write_text("free")
    (folder / "USE_POLICY.md").write_text("be good")
    card = pruned_to(folder, tmp_path / "out")
    data = head(card)
    assert data["license"] == "llama3.2"
    assert data["license_name"] == "Llama: a licence"
    assert data["license_link"] == "LICENSE"
    assert data["language"] == ["en", "no", "---"]
    assert data["base_model"] == "meta/Base"
    assert data["tags"] == ["pruned", "structured-pruning", "secateur", "facebook", "x: y"]
    assert not {"datasets", "model-index", "extra"} & data.keys()
    assert "Llama: a licence; see LICENSE, USE\\_POLICY.md." in card.replace("USE_", "USE\\_")
    assert 'from_pretrained("theirs"' not in card


@pytest.mark.parametrize("content", [pytest.param(v, id=k) for k, v in BROKEN.items()])
def test_a_broken_card_breaks_nothing(
    content: bytes, tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder()
    (folder / "README.md").write_bytes(content)
    data = head(pruned_to(folder, tmp_path / "out"))
    assert data.keys() <= {"library_name", "pipeline_tag", "tags", "license", "language"}
    again = recovered_to(folder, text_file, tmp_path / "again")
    assert "## Recovery" in again


def test_a_card_that_is_a_folder_or_a_link_is_none(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.md").write_text("---\nlicense: PRIVATE\n---\nPRIVATE")
    for make in (lambda p: p.mkdir(), lambda p: p.symlink_to(tmp_path / "secret.md")):
        folder = tiny_folder()
        make(folder / "README.md")
        (folder / "run.toml").symlink_to(tmp_path / "secret.md")
        place = tmp_path / f"out-{folder.name}"
        assert "PRIVATE" not in pruned_to(folder, place)
        (folder / "run.toml").unlink()
        assert "PRIVATE" not in recovered_to(folder, text_file, tmp_path / f"r-{folder.name}")


def results_of(card: str) -> tuple[str, dict[int, Any]]:
    """The name and the results in a card's head by window, by the hub's own reader."""
    data = ModelCard(card).data
    assert ModelCard(str(ModelCard(card))).data.to_dict() == data.to_dict()
    return data.model_name, {one.metric_args["window"]: one for one in data.eval_results or ()}


def test_the_hub_reads_the_numbers_of_the_table(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder()
    (folder / "README.md").write_text(THEIRS)
    given = {"calibration": str(text_file), "samples": 4, "length": 16, "align": 1}
    cards = [
        pruned_to(folder, tmp_path / "out", method="flap", ratio=0.3, evaluate="spare", **given)
    ]
    cards.append(recovered_to(tmp_path / "out", text_file, tmp_path / "r", evaluate="spare"))
    for card, record in zip(cards, ("out/run.toml", "r/recovery.toml"), strict=True):
        numbers = tomllib.loads((tmp_path / record).read_text())["results"]["perplexity"]
        name, results = results_of(card)
        assert name == f"{folder.name}, pruned"
        assert results.keys() == {row["window"] for row in numbers} != set()
        for row in numbers:
            one = results[row["window"]]
            assert (one.task_type, one.metric_type) == ("text-generation", "perplexity")
            assert one.metric_value == pytest.approx(row["after"], abs=0.006)
            assert one.metric_args["before"] == pytest.approx(row["before"], abs=0.006)
            assert one.metric_args["tokens"] == row["tokens"]
            assert one.dataset_name.startswith("a part of calibration.txt that ")
            assert f"| {one.metric_args['before']:.2f} | {one.metric_value:.2f} |" in card
        assert str(tmp_path) not in card
    assert cards[1].count("model-index:") == 1


def test_numbers_of_another_model_go_from_a_card(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    theirs = "model-index:\n- name: theirs\n  results: []\n\n  # said\n"
    for entry in (theirs, '"model-index": [{name: theirs}]\n', "model-index: 7\n"):
        folder = tiny_folder()
        (folder / "README.md").write_text(f"---\nlicense: mit # so\n{entry}tags: [a]\n---\n# x\n")
        card = recovered_to(folder, text_file, tmp_path / f"r-{folder.name}")
        data = yaml.safe_load(card.split("---\n")[1])
        assert data == {"license": "mit", "tags": ["a"]}
        assert "# x" in card


def test_results_name_the_data_set_and_no_place() -> None:
    rows = [{"window": 128, "tokens": 9, "before": 7.0, "after": math.inf}]

    def result(text: str, source: str) -> dict[str, Any]:
        index = model_index("x\ny", {"perplexity": rows, "evaluation": {
            "text": text, "source": source}}, {})  # fmt: skip
        assert index[0]["name"] == "x y"
        assert index[0]["results"][0]["metrics"][0]["value"] == "inf"
        return dict(index[0]["results"][0]["dataset"])

    assert result("wikitext2", "wikitext2") == {
        "name": "wikitext2", "type": "Salesforce/wikitext", "config": "wikitext-2-raw-v1",
        "split": "test",
    }  # fmt: skip
    assert result("a part of wikitext2 that", "wikitext2")["split"] == "train"
    assert "validation" in result("c4", "c4")["args"]["data_files"]
    assert "train" in result("a part of c4 that", "c4")["args"]["data_files"]
    assert result("own/set", "own/set") == {"name": "own/set", "type": "own/set"}
    assert result("a part of /tmp/x.txt that", "/tmp/x.txt") == {
        "name": "a part of x.txt that", "type": "text"
    }  # fmt: skip
    assert model_index("x", {"perplexity": []}, {}) == []


def test_a_snapshot_of_the_hub_is_called_by_its_name(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder()
    (folder / "README.md").write_text(THEIRS)
    snapshot = cached(folder, tmp_path / "hub", "models--some-org--a--name")
    card = pruned_to(snapshot, tmp_path / "out")
    assert "# some-org/a--name, pruned" in card
    assert head(card)["base_model"] == "some-org/a--name"
    assert "5" * 40 not in card
    (snapshot / "README.md").unlink()
    assert head(recovered_to(snapshot, text_file, tmp_path / "r"))["base_model"] == (
        "some-org/a--name"
    )
    ownerless = cached(folder, tmp_path / "hub", "models--gpt2")
    assert "# gpt2, pruned" in pruned_to(ownerless, tmp_path / "out2")


def test_a_live_module_is_called_by_the_name_that_it_was_loaded_by(tmp_path: Path) -> None:
    model = tiny_model()
    model.config._name_or_path = "org/name"
    card = pruned_to(model, tmp_path / "out")
    assert "# org/name, pruned" in card
    assert head(card)["base_model"] == "org/name"
    model.config._name_or_path = str(tmp_path)
    card = pruned_to(model, tmp_path / "again")
    assert "# live module, pruned" in card
    assert str(tmp_path) not in card + (tmp_path / "again" / "config.json").read_text()


def test_no_card_has_a_place_on_this_machine(
    tiny_folder: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute or relative; the record keeps what was typed, so that the run can be repeated."""
    folder, out = tiny_folder(), tmp_path / "out"
    card = pruned_to(
        folder, out, ratio=0.2, method="flap", calibration=str(text_file), samples=4, length=16,
        evaluate="spare", align=1,
    )  # fmt: skip
    assert "Perplexity on a part of calibration.txt that" in card
    again = recovered_to(out, text_file, tmp_path / "better", evaluate=str(text_file))
    monkeypatch.chdir(tmp_path)
    here = pruned_to(f"./{folder.name}/", Path("third"))
    for text in (card, again, here):
        assert str(tmp_path) not in text
        assert "./" not in text.replace("://", "")
        assert f"# {folder.name}, pruned" in text
    assert str(text_file) in (out / "run.toml").read_text()
    assert str(folder) in (out / "run.toml").read_text()


@pytest.mark.parametrize(
    "name",
    [
        "<img src=x onerror=a()>",
        "a | b",
        "a`b`*c*[d](e)~f",
        "x\n# Heading\n---\n- y",
        "\x1b[31mred",
    ],
)
def test_names_mean_nothing_in_a_card(
    name: str, tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / name.replace("/", "")
    tiny_folder().rename(folder)
    text = tmp_path / f"{folder.name}.txt"
    text.write_text(text_file.read_text())
    card = pruned_to(folder, tmp_path / "out", calibration=str(text), evaluate=str(text))
    again = recovered_to(tmp_path / "out", text, tmp_path / "better", evaluate=str(text))
    body = "\n".join(one.split("\n---\n", 1)[1] for one in (card, again))
    assert "<img" not in body
    assert "\x1b" not in body
    assert "[d](e)" not in body
    assert not re.search(r"^(# Heading|---|- y)", body, re.MULTILINE)
    for line in body.splitlines():
        if line.startswith(("| model |", "| evaluate |")):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3


@pytest.mark.parametrize("form", ["own", "stock"])
def test_its_lines_ask_for_remote_code_where_it_is_needed_alone(
    form: str, tiny_folder: Any, tmp_path: Path
) -> None:
    given = {"own": {"ratio": 0.2, "layers": "1-2", "align": 1}, "stock": {}}[form]
    card = pruned_to(tiny_folder(), tmp_path / "out", **given)
    needed = (tmp_path / "out" / "modeling_secateur.py").exists()
    assert needed == (form == "own") == ("auto_map" in json.loads(
        (tmp_path / "out" / "config.json").read_text()
    ))  # fmt: skip
    asking = [line for line in card.splitlines() if "trust_remote_code=True" in line]
    assert len(asking) == needed
    assert not any("Tokenizer" in line for line in asking)
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        place = str(tmp_path / "out")
        exec(block.replace("path/to/this/folder", place), {})


def test_a_card_lists_the_settings_that_were_looked_at(tiny_folder: Any, tmp_path: Path) -> None:
    plain = pruned_to(tiny_folder(), tmp_path / "plain")
    assert "| search |" in plain
    for idle in ("fine", "members", "target", "rescore", "dequantise", "stock"):
        assert f"| {idle} |" not in plain
    fitted = pruned_to(tiny_folder(), tmp_path / "fitted", repair="mask-tuning")
    assert "| target | residual |" in fitted
