"""Long texts have the tokens that they have whole; windows begin with BOS as the user says."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import secateur
from conftest import SHARED, tiny_model, tiny_tokenizer
from secateur.cli.main import run
from secateur.cli.screen import Screen
from secateur.data import (
    IGNORED,
    Examples,
    beginning,
    cut,
    instruction_examples,
    running_text,
    sample_windows,
    tokens,
)
from secateur.data.sources import embedded_folder
from secateur.errors import SecateurError
from secateur.evaluation import perplexity
from secateur.models import open_model
from secateur.progress import _Course, telling


def adding(*, end: bool = False) -> Any:
    """The tiny tokenizer, which now puts its BOS (1) before every text."""
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if end else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


# --- pieces ---------------------------------------------------------------------------------------


class Spaced:
    """A tokenizer that puts a space before every text, as Llama's does."""

    @staticmethod
    def from_pretrained(path: Path) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        text = (path / "heldout.txt").read_text(encoding="utf-8")[:20_000]
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
        tokenizer.train_from_iterator([text], trainer)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def tokenizers() -> list[Any]:
    """One of byte pieces, one that puts a space before every text; real ones where they are."""
    from transformers import AutoTokenizer

    real = [SHARED / "models" / "TinyStories-656K", SHARED / "models" / "stories260K"]
    large = [Path.home() / ".cache/secateur-models" / n for n in ("smollm2-135m", "gemma3-270m")]
    found = [embedded_folder(), *(path for path in (*real, *large) if path.is_dir())]
    return [pytest.param(Spaced, embedded_folder(), id="spaced")] + [
        pytest.param(
            AutoTokenizer, path, id=path.name, marks=[pytest.mark.slow] if path in large else []
        )
        for path in found
    ]


@pytest.mark.parametrize(("loader", "path"), tokenizers())
def test_pieces_have_the_tokens_of_the_whole(
    loader: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = loader.from_pretrained(path)
    text = (embedded_folder() / "calibration.txt").read_text(encoding="utf-8")[:30_000]
    text += "  two  spaces\n\n\n   three lines, 1234567890 ümläut " * 40
    text += "\n".join("    " * (n % 4) + f"x{n}()" for n in range(700))  # no two words on a line
    expected = tokenizer(text, verbose=False)["input_ids"]
    begin = beginning(tokenizer, "document")
    for length in (300, 2000):
        monkeypatch.setattr(tokens, "PIECE", length)
        pieces = list(tokens.token_pieces(text, tokenizer, begin))
        assert len(pieces) > len(text) // length
        assert torch.cat(pieces).tolist() == expected


@pytest.mark.parametrize("end", [False, True])
def test_what_stands_before_and_after_a_text_stands_there_once(
    end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "PIECE", 10)
    tokenizer = adding(end=end)
    for text in ("a few words that are longer than a piece", "x" * 35, "\n" * 35, "short"):
        whole = tokenizer(text)["input_ids"]
        pieces = tokens.token_pieces(text, tokenizer, beginning(tokenizer, "document"))
        assert torch.cat(list(pieces)).tolist() == whole
        never = tokens.token_pieces(text, tokenizer, beginning(tokenizer, "never"))
        assert torch.cat(list(never)).tolist() == whole[1:]


def test_reading_stops_when_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a long document nor what comes after it is tokenised for nothing."""
    monkeypatch.setattr(tokens, "PIECE", 100)
    seen: list[int] = []

    class Counting:
        bos_token_id = None
        inner = tiny_tokenizer()

        def __call__(self, text: str, **options: Any) -> Any:
            seen.append(len(text))
            return self.inner(text, **options)

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return list(self.inner.convert_ids_to_tokens(ids))

    def endless() -> Any:
        yield "some words " * 1000
        raise AssertionError("too far")

    found = sample_windows(endless(), Counting(), source="x", samples=2, length=20, seed=0)
    assert found.ids.shape == (2, 20)
    assert max(seen) <= 200
    assert sum(size for size in seen if size > 70) < 1000


def test_long_reading_is_shown() -> None:
    stages: list[tuple[str, int, int]] = []

    class Progress:
        def track(self, items: Any, stage: str, total: int, unit: str) -> Any:
            count = 0
            for count, item in enumerate(items, start=1):  # noqa: B007
                yield item
            stages.append((stage, count, total))

        def status(self, message: str) -> None: ...

        def note(self, message: str) -> None: ...

    options: dict[str, Any] = {"source": "x", "length": 10, "seed": 0}
    with telling(Progress()):
        sample_windows(["ab " * 500] * 9, tiny_tokenizer(), samples=30, **options)
        running_text(["ab " * 500] * 9, tiny_tokenizer(), source="x", at_most=None)
    assert stages[0] == ("reading text", 120, 120)
    assert stages[1] == ("reading text", 13, 0)  # thousands of tokens, of nobody knows how many
    said = _Course("reading text", 0, "thousand tokens")
    said.done = 13
    assert said.line("") == "reading text: thousand tokens 13, 0:00 so far"
    screen, shown = Screen(), io.StringIO()
    screen.console = Console(file=shown, force_terminal=True)
    assert list(screen.track(range(3), "reading text", 0, "window")) == [0, 1, 2]
    assert "/?" in shown.getvalue()


# --- BOS ------------------------------------------------------------------------------------------


def test_what_a_text_begins_with_is_found_by_what_the_tokenizer_does() -> None:
    assert beginning(tiny_tokenizer()).mode == "never"
    assert beginning(adding()).to_json() == {"mode": "each", "token": "<s>"}
    assert beginning(adding(end=True)).window == (1,)
    assert beginning(adding(), "document").window == ()
    assert beginning(tiny_tokenizer(), "each").window == (1,)
    silent = tiny_tokenizer()
    silent.bos_token = None
    with pytest.raises(SecateurError, match="no beginning-of-text token"):
        beginning(silent, "each")


def test_windows_that_begin_with_bos_hold_the_text_in_order_and_no_bos_twice() -> None:
    texts = ["".join(chr(40 + (i * j) % 60) for i in range(50)) for j in (1, 7, 11)]
    stream = running_text(texts, adding(), source="x", at_most=None).ids
    assert int((stream == 1).sum()) == 3
    windows = cut(stream, 10, (1,))
    assert (windows[:, 0] == 1).all()
    assert not ((windows[:, 1:-1] == 1) & (windows[:, :-2] == 1)).any()
    left = [token for row in windows[:, 1:].tolist() for token in row if token != 1]
    assert left == [token for token in stream.tolist() if token != 1][: len(left)]
    assert len(stream) - len(left) < 13
    assert cut(stream[:1], 10, (1,)).shape == (0, 10)


@pytest.mark.parametrize(("bos", "first"), [("each", 6), ("document", 1), ("never", 0)])
def test_windows_begin_as_the_user_says(bos: str, first: int) -> None:
    text = "".join(chr(40 + i % 60) for i in range(70))
    options: dict[str, Any] = {"source": "x", "samples": 6, "length": 10, "seed": 0, "bos": bos}
    found = sample_windows([text], adding(), choice=1, **options)
    assert int((found.ids[:, 0] == 1).sum()) == first
    assert found.begin.mode == bos


def test_bos_is_never_what_is_predicted() -> None:
    """The loss by hand, over what is no BOS; in training, too."""
    model = tiny_model()
    windows = torch.randint(3, 128, (4, 12), generator=torch.Generator().manual_seed(1))
    windows[:, 0] = 1
    windows[2, 5] = 1
    with torch.no_grad():
        logs = model(windows).logits[:, :-1].log_softmax(-1)
    told = -logs.gather(2, windows[:, 1:, None])[..., 0][windows[:, 1:] != 1]
    source = open_model(model).streamed(device="cpu")
    found = perplexity(source, windows, batch=3, begin=(1,))
    assert found.tokens == len(told) == 4 * 11 - 1
    assert math.isclose(found.value, math.exp(float(told.mean())), rel_tol=1e-5)
    alone = torch.cat([windows[:1], torch.ones_like(windows[:1])])  # in a batch of its own
    assert perplexity(source, alone, batch=1, begin=(1,)).tokens == 11
    examples = Examples.of_windows(windows, (1,))
    assert torch.equal(examples.labels == IGNORED, windows == 1)
    assert examples.tokens == found.tokens


@pytest.fixture
def adding_folder(tiny_folder: Any) -> Path:
    folder: Path = tiny_folder()
    adding().save_pretrained(folder)
    return folder


def options_of(text: Path) -> dict[str, Any]:
    return {"calibration": str(text), "samples": 4, "length": 16, "align": 1, "device": "cpu"}


def test_bos_is_recorded_printed_and_repeated(
    adding_folder: Path, text_file: Path, tmp_path: Path, capsys: Any
) -> None:
    command = ["prune", str(adding_folder), "--calibration", str(text_file), "--samples", "4"]
    command += ["--length", "16", "--align", "1"]
    for bos, first in (("auto", "each"), ("document", "document"), ("never", "never")):
        out = tmp_path / bos
        assert run([*command, "--bos", bos, "--out", str(out)]) == 0
        assert f"(--bos {first})" in capsys.readouterr().out
        assert f'bos = "{first}"' in (out / "run.toml").read_text()
        assert json.loads((out / "plan.json").read_text())["calibration"]["bos"] == first
    again = tmp_path / "again"
    first = str(tmp_path / "auto" / "run.toml")
    assert run(["prune", "--config", first, "--out", str(again), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["results"]["bos"]["mode"] == said["settings"]["bos"] == "each"
    assert (again / "run.toml").read_bytes() == (tmp_path / "auto" / "run.toml").read_bytes()
    hashes = [
        (tmp_path / bos / "run.toml").read_text().split("tokens_sha256")[1].split('"')[1]
        for bos in ("auto", "document", "never")
    ]
    assert len(set(hashes)) == 3


def test_records_of_before_apply_as_document(
    adding_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = options_of(text_file)
    made = secateur.prune(adding_folder, out=out, bos="document", **options)
    plan, record = out / "plan.json", out / "run.toml"
    old = json.loads(plan.read_text())
    del old["calibration"]["bos"]
    plan.write_text(json.dumps(old))
    applied = secateur.apply(secateur.pipeline.read_plan(plan), adding_folder, device="cpu")
    assert applied.config.bos == "document"
    assert applied.numbers["perplexity"] == made.numbers["perplexity"]
    record.write_text(record.read_text().replace('bos = "document"\n', ""))
    assert secateur.config.read_toml(record)["bos"] == "document"
    record.write_text('[settings]\nmodel = "x"\n')
    assert "bos" not in secateur.config.read_toml(record)


def test_perplexity_of_a_command_is_that_of_its_windows(
    adding_folder: Path, text_file: Path, capsys: Any
) -> None:
    text = text_file.read_text()
    source = open_model(adding_folder).streamed(device="cpu")
    for bos, begin in (("each", (1,)), ("document", ())):
        stream = running_text([text], adding(), source="x", at_most=None, bos=bos)
        expected = perplexity(source, stream.windows(32), batch=8, begin=begin)
        found = secateur.evaluate(adding_folder, str(text_file), evaluate_lengths=[32], bos=bos)
        assert list(found) == [expected]
        command = [
            "evaluate",
            str(adding_folder),
            "--evaluate",
            str(text_file),
            "--evaluate-lengths",
            "32",
        ]
        assert run([*command, "--bos", bos]) == 0
        assert f"(--bos {bos})" in capsys.readouterr().out
    with pytest.raises(SecateurError, match=r"--bos 'eech'(?s:.*)each"):
        secateur.evaluate(adding_folder, str(text_file), bos="eech")


def test_a_recovery_trains_on_windows_as_it_is_measured(
    adding_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    done = secateur.recover(
        adding_folder, data=str(text_file), out=tmp_path / "out", recipe="lora", steps=1,
        batch=2, length=16, samples=20, device="cpu",
    )  # fmt: skip
    assert done.config.bos == "each"
    assert done.numbers["bos"] == {"mode": "each", "token": "<s>"}
    assert 'bos = "each"' in (tmp_path / "out" / "recovery.toml").read_text()
    assert done.numbers["data"]["tokens"] == done.numbers["data"]["examples"] * 15


# --- instructions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", "1 and 2"])
def test_the_prompt_is_that_of_alpaca_and_tokenised_with_its_response(
    more: str, tmp_path: Path
) -> None:
    """The ids of prompt and response as one text; those of the prompt alone have no label."""
    row = {"instruction": "Add.", "input": more, "output": "3"}
    prompt = (
        "Below is an instruction that describes a task, paired with an input that provides further"
        " context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n"
        if more
        else "Below is an instruction that describes a task. Write a response that appropriately"
        " completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n"
    )
    path = tmp_path / "few.jsonl"
    path.write_text(json.dumps(row))
    for bos, begins in (("each", [1]), ("never", [])):
        found = instruction_examples(str(path), adding(), length=400, samples=1, seed=0, bos=bos)
        assert found.ids[0].tolist() == [*begins, *map(ord, prompt + "3"), 2]
        assert int((found.labels[0] == IGNORED).sum()) == len(begins) + len(prompt)
