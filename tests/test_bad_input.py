"""Bad input: exit code 2, one or two lines that say the cause and the cure, nothing left behind."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from secateur import pipeline
from secateur.checkpoint import folder as folder_module
from secateur.checkpoint import shards
from secateur.cli.main import run

SUPPORTED = "llama, mistral, qwen2, qwen3"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Refused = Callable[..., str]
Spoil = Callable[[Path], None]


@pytest.fixture(autouse=True)
def transformers_voice() -> Iterator[None]:
    """The command line silences transformers in this process; other tests get it back as it was."""
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture
def model(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder()


@pytest.fixture
def calibrated(text_file: Path) -> list[str]:
    """Options of a quick run."""
    return ["--calibration", str(text_file), "--samples", "4", "--length", "16"]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused; give what it said.

    Every word (a regular expression) must be in the message, and all of the test's folder (inputs,
    --out, its siblings and parents) must be as it was.
    """

    def check(*arguments: object, says: Sequence[str], code: int = 2) -> str:
        capsys.readouterr()
        before = snapshot(tmp_path)
        returned = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert returned == code, err
        assert out == ""
        assert snapshot(tmp_path) == before
        lines = [line for line in err.splitlines() if line.strip()]
        assert 1 <= len(lines) <= 2, err
        assert "Traceback" not in err
        assert code == 130 or err.startswith("Error: "), err
        for word in says:
            assert re.search(word, err), f"{word!r} is not in: {err}"
        return err

    return check


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below `folder`: files with their bytes, folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def cases(table: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    """A table as parameters, by name."""
    return [pytest.param(*case, id=name) for name, case in table.items()]


# --- the model folder -----------------------------------------------------------------------------


def config(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def written(name: str, content: str | bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return spoil


def without(*names: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def renamed(name: str, new: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).rename(folder / new)

    return spoil


def truncated(share: float) -> Spoil:
    def spoil(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[: int(len(data) * share)])

    return spoil


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        edit(held)
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})

    return spoil


def value(name: str, number: float) -> Spoil:
    """One number in one tensor."""

    def edit(held: dict[str, torch.Tensor]) -> None:
        held[name].view(-1)[-1] = number

    return tensors(edit)


def filled(number: float, *names: str) -> Spoil:
    """Whole tensors of one number."""

    def edit(held: dict[str, torch.Tensor]) -> None:
        for name in names:
            held[name] = torch.full_like(held[name], number)

    return tensors(edit)


def sharded(*, lost: bool = False, index: str | None = None) -> Spoil:
    """Two shards with an index; perhaps the second is lost, or the index another text."""

    def spoil(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        names = list(held)
        files = {
            name: f"model-{1 + (i > 4):05}-of-00002.safetensors" for i, name in enumerate(names)
        }
        for file in set(files.values()):
            part = {name: held[name] for name in names if files[name] == file}
            save_file(part, folder / file, metadata={"format": "pt"})
        (folder / WEIGHTS).unlink()
        (folder / INDEX).write_text(json.dumps({"weight_map": files}) if index is None else index)
        if lost:
            (folder / "model-00002-of-00002.safetensors").unlink()

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        for one in spoils:
            one(folder)

    return spoil


T5 = {"model_type": "t5", "is_encoder_decoder": True}
BAD_FOLDERS: dict[str, tuple[Spoil, list[str]]] = {
    "gone": (shutil.rmtree, ["No such model folder", "Give a folder with config.json"]),
    "no-config": (without("config.json"), ["no config.json", "Give the folder"]),
    "config-not-json": (
        written("config.json", '{"model_type": '),
        ["config.json is not JSON: line 1", "again"],
    ),
    "config-a-list": (written("config.json", "[]"), ["not hold a JSON object", "again"]),
    "config-without-type": (written("config.json", "{}"), ["not supported", SUPPORTED]),
    "config-of-another-type": (
        config(hidden_size="wide"),
        ["config.json does not make sense", "hidden_size", "wide"],
    ),
    "config-of-another-width": (
        config(intermediate_size=64),
        [r"layers\.0\.mlp", r"\[56, 48\]", r"\[64, 48\]", "belong together"],
    ),
    "config-of-more-layers": (
        config(num_hidden_layers=4),
        [r"lacks the tensor model\.layers\.3", "again"],
    ),
    "encoder-decoder": (
        written("config.json", json.dumps({**T5, "architectures": ["T5ForConditionalGeneration"]})),
        ["T5ForConditionalGeneration", "ForCausalLM", SUPPORTED],
    ),
    "encoder-decoder-unnamed": (
        written("config.json", json.dumps(T5)),
        ["not a decoder language model", "t5", SUPPORTED],
    ),
    "encoder": (
        written(
            "config.json", json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]})
        ),
        ["BertForMaskedLM", "ForCausalLM", SUPPORTED],
    ),
    "classifier": (
        config(architectures=["LlamaForSequenceClassification"]),
        ["LlamaForSequenceClassification", "ForCausalLM"],
    ),
    "unsupported-family": (
        config(model_type="mamba", architectures=["MambaForCausalLM"]),
        ["'mamba' is not supported", SUPPORTED],
    ),
    "quantised-config": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ["is quantised", "prune the floating-point model"],
    ),
    "quantised-weights": (
        tensors(
            lambda held: held.update(
                {"model.layers.0.mlp.up_proj.weight": torch.zeros(56, 48, dtype=torch.int8)}
            )
        ),
        ["is quantised", r"layers\.0\.mlp\.up_proj", "int8", "prune the floating-point model"],
    ),
    "tensor-missing": (
        tensors(lambda held: held.pop("model.layers.1.mlp.up_proj.weight")),
        [r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight", "again"],
    ),
    "no-weights": (without(WEIGHTS), ["no weights", WEIGHTS, "again"]),
    "pickle-only": (
        renamed(WEIGHTS, "pytorch_model.bin"),
        ["pickle", "can run code", "save_pretrained"],
    ),
    "weights-truncated": (truncated(0.5), [WEIGHTS, "truncated or corrupt", "again"]),
    "weights-truncated-in-header": (truncated(0.001), ["truncated or corrupt", "again"]),
    "weights-empty": (truncated(0), ["truncated or corrupt", "again"]),
    "weights-garbage": (written(WEIGHTS, b"\xff" * 999), ["truncated or corrupt", "again"]),
    "shard-missing": (
        sharded(lost=True),
        ["lacks 1 of 2 shards", r"model-00002-of-00002\.safetensors", "again"],
    ),
    "index-not-json": (sharded(index="{"), [f"{INDEX} is not JSON", "again"]),
    "index-empty": (sharded(index="{}"), ["lists no weights", "again"]),
    "no-tokenizer": (
        without("tokenizer.json", "tokenizer_config.json"),
        ["no tokenizer", r"tokenizer\.json", "Copy the tokenizer files"],
    ),
    "config-without-kv-heads": (
        config(num_key_value_heads=0),
        ["config.json does not make sense"],
    ),
    "tokenizer-not-json": (
        written("tokenizer.json", "{"),
        ["tokenizer", "does not load", "(?i)copy|download"],
    ),
    "tokenizer-of-another-model": (
        both(config(vocab_size=64), tensors(lambda held: held.update(cut_vocabulary(held)))),
        ["(?i)tokenizer", "64"],
    ),
}


def cut_vocabulary(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return {name: held[name][:64].clone() for name in names}


@pytest.mark.parametrize(("spoil", "words"), cases(BAD_FOLDERS))
def test_a_folder_that_is_no_sound_causal_model_is_refused(
    spoil: Spoil,
    words: list[str],
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
) -> None:
    spoil(model)
    refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize("command", ["apply", "evaluate", "inspect"])
def test_every_command_refuses_a_model_that_is_not_there(
    command: str, model: Path, text_file: Path, tmp_path: Path, refused: Refused
) -> None:
    gone = tmp_path / "gone"
    plan = tmp_path / "plan"
    pipeline.prune(model, method="random", dry_run=True, out=plan)
    arguments = {
        "apply": ["apply", plan, gone, "--out", tmp_path / "small"],
        "evaluate": ["evaluate", gone, "--text", text_file],
        "inspect": ["inspect", gone],
    }
    refused(*arguments[command], says=["No such model folder", "Give a folder"])


def test_a_file_in_place_of_a_folder_is_refused(
    text_file: Path, tmp_path: Path, refused: Refused
) -> None:
    refused("prune", text_file, "--out", tmp_path / "small", says=["not a model folder", "Give"])


def test_a_hub_name_that_the_hub_does_not_give_is_refused(tmp_path: Path, refused: Refused) -> None:
    words = ["no folder nobody/nothing", "hub", "Check the name"]
    refused("prune", "nobody/nothing", "--out", tmp_path / "small", says=words)


def test_sharded_weights_are_read(
    model: Path, calibrated: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The counterpart of the cases above: what they break is sound to begin with."""
    sharded()(model)
    assert run(["prune", str(model), *calibrated, "--dry-run"]) == 0
    assert "nothing written" in capsys.readouterr().out


# --- NaN and infinity -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "tensor",
    [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.2.input_layernorm.weight",
        "lm_head.weight",
    ],
)
def test_weights_that_are_not_finite_are_named(
    number: float,
    tensor: str,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
) -> None:
    value(tensor, number)(model)
    words = ["NaN or infinity", re.escape(tensor), "again"]
    refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(
            filled(
                1e30, "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
            ),
            [r"input of model\.layers\.1\.mlp\.down_proj", "float32"],
            id="mlp",
        ),
        pytest.param(
            filled(3e38, "model.layers.0.self_attn.v_proj.weight"),
            [r"input of model\.layers\.0\.self_attn\.o_proj", "float32"],
            id="attention",
        ),
        pytest.param(
            filled(1e30, "model.layers.2.self_attn.v_proj.weight"),
            [r"layers\.2\.(self_attn\.o_proj|attention)", "(?i)try|again"],
            id="statistics",
        ),
    ],
)
def test_activations_that_overflow_are_named_by_layer_and_tensor(
    spoil: Spoil,
    words: list[str],
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
) -> None:
    spoil(model)
    refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(
            filled(
                1e30, "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
            ),
            ["output of layer 1", "--dtype float32"],
            id="layer",
        ),
        pytest.param(
            filled(3e38, "lm_head.weight"),
            ["NaN or infinity", "logits|lm_head"],
            id="logits",
        ),
    ],
)
def test_evaluation_names_where_it_overflows(
    spoil: Spoil, words: list[str], model: Path, text_file: Path, refused: Refused
) -> None:
    spoil(model)
    refused("evaluate", model, "--text", text_file, says=words)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ratio", "1.5"], ["ratio", "1.5", "less than 1"]),
        (["--ratio", "1"], ["ratio", "less than 1"]),
        (["--ratio", "-0.1"], ["ratio", "-0.1", "greater than or equal to 0"]),
        (["--ratio", "nan"], ["ratio", "nan"]),
        (["--ratio", "0.999"], ["ratio asks for", "at most", "Lower --ratio"]),
        (
            ["--ratio", "0.5", "--layers", "0"],
            ["ratio asks for", "at most", "widen --layers"],
        ),
        (["--layers", "3"], ["--layers", "'3'", "0 to 2"]),
        (["--layers", "0-9"], ["--layers", "'0-9'", "0 to 2"]),
        (["--layers", "2-0"], ["--layers", "'2-0'", "ascending"]),
        (["--layers", "1,1"], ["--layers", "ascending"]),
        (["--layers", "first"], ["--layers", "'first'", "4-29"]),
        (["--layers", ""], ["--layers", "no layer", "0-2"]),
        (["--length", "1"], ["length", "greater than or equal to 2"]),
        (["--length", "65"], ["--length 65", "context of the model, 64", "--length 64 or less"]),
        (["--samples", "0"], ["samples", "greater than or equal to 1"]),
        (["--batch", "0"], ["batch", "greater than or equal to 1"]),
        (["--seed", "-1"], ["seed", "greater than or equal to 0"]),
        (["--align", "0"], ["align", "greater than or equal to 1"]),
        (["--attention-units", "-1"], ["attention_units", "greater than or equal to 0"]),
        (["--hidden-gib", "-1"], ["hidden_gib", "greater than or equal to 0"]),
        (["--evaluate-tokens", "1"], ["evaluate_tokens", "greater than or equal to 2"]),
        pytest.param(
            ["--seed", "99999999999999999999"],
            ["seed", "less than"],
        ),
        pytest.param(
            ["--hidden-gib", "inf"],
            ["hidden_gib", "finite"],
        ),
    ],
    ids=lambda value: " ".join(value) if "--" in value[0] else "",
)
def test_settings_out_of_range_are_refused_with_the_range(
    options: list[str],
    words: list[str],
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
) -> None:
    refused("prune", model, *calibrated, *options, "--out", tmp_path / "small", says=words)


def test_an_mlp_grid_wider_than_the_mlp_leaves_the_mlp_alone(
    model: Path, calibrated: list[str], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    arguments = ["prune", str(model), *calibrated, "--align", "999", "--out", str(small)]
    assert run(arguments) == 0
    assert json.loads((small / "config.json").read_text())["intermediate_size"] == 56


@pytest.mark.parametrize(
    ("option", "given", "meant"),
    [
        ("--method", "flop", "flap"),
        ("--importance", "wifw", "wifv"),
        ("--search", "al-am", "AL-AM"),
        ("--repair", "bais", "bias"),
        ("--dtype", "float23", "float32"),
        ("--calibration", "wikitxt2", "wikitext2"),
        ("--calibration", "embeded", "embedded"),
        ("--evaluate", "wikitxt2", "wikitext2"),
        pytest.param(
            "--of",
            "linear",
            "linears",
        ),
    ],
)
def test_an_unknown_value_is_refused_with_the_nearest_known_one(
    option: str,
    given: str,
    meant: str,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
) -> None:
    words = [given, f"Did you mean '{meant}'", r"Known: |one of |expected"]
    refused("prune", model, *calibrated, option, given, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune", "MODEL", "--ratoi", "0.2"], ["--ratoi", "Did you mean", "--ratio"]),
        (["prune", "MODEL", "--ratio", "much"], ["--ratio", "much", "float"]),
        (["prune", "MODEL", "--samples", "many"], ["--samples", "many", "integer"]),
        (["prune", "MODEL", "--ratio"], ["--ratio", "requires an argument"]),
        (["prune", "MODEL", "MODEL"], ["unexpected extra argument"]),
        (["prune"], ["No model given", "secateur prune MODEL"]),
        (["prune", "MODEL"], ["Where to", "--out DIR"]),
        (["apply", "MODEL", "MODEL"], ["Where to", "--out DIR"]),
        (["apply", "MODEL"], ["Missing argument 'MODEL'", "secateur apply --help"]),
        (["evaluate", "MODEL"], ["Missing option '--text'", "secateur evaluate --help"]),
        (["inspect"], ["Missing argument 'DIR'", "secateur inspect --help"]),
        (["prun", "MODEL"], ["No such command 'prun'", "Did you mean 'prune'"]),
        (["--versoin"], ["--versoin", "--version"]),
    ],
    ids=lambda value: " ".join(value).replace("MODEL", "m") if value[0].islower() else "",
)
def test_misspelt_and_missing_arguments_are_refused(
    arguments: list[str], words: list[str], model: Path, refused: Refused
) -> None:
    refused(*[str(model) if a == "MODEL" else a for a in arguments], says=words)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", "tpu"])
def test_an_unknown_device_is_refused(
    device: str, model: Path, calibrated: list[str], tmp_path: Path, refused: Refused
) -> None:
    options = [*calibrated, "--device", device, "--out", tmp_path / "small"]
    refused("prune", model, *options, says=[f"'{device}'", r"cpu", "auto"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_refused_where_there_is_none(
    model: Path, calibrated: list[str], text_file: Path, tmp_path: Path, refused: Refused
) -> None:
    words = ["no device 'cuda'", "--device cpu"]
    small = tmp_path / "small"
    refused("prune", model, *calibrated, "--device", "cuda", "--out", small, says=words)
    refused("evaluate", model, "--text", text_file, "--device", "cuda", says=words)


# --- texts ----------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[str, bytes, list[str]]] = {
    "empty": ("text.txt", b"", ["no text in it", "Give"]),
    "blank": ("text.txt", b" \n\n \n", ["no text in it", "Give"]),
    "separators": ("text.txt", b"<|endoftext|>\n<|endoftext|>", ["no text in it", "Give"]),
    "binary": ("text.txt", b"\xff\xfe\x00\x81", ["not UTF-8", "Give"]),
    "jsonl-empty": ("text.jsonl", b"\n", ["no text in it", "Give"]),
    "jsonl-broken": (
        "text.jsonl",
        b'{"text": "one"}\n{"text": \n',
        ["line 2 is not JSON", r'\{"text": "..."\}'],
    ),
    "jsonl-other-field": (
        "text.jsonl",
        b'{"text": "one"}\n\n{"content": "two"}\n',
        ["line 3 has no text", r'\{"text": "..."\}'],
    ),
    "jsonl-number": ("text.jsonl", b'{"text": 7}\n', ["line 1 has no text", "expected"]),
    "jsonl-list": ("text.jsonl", b'["one"]\n', ["line 1 has no text", "expected"]),
}


@pytest.mark.parametrize("use", ["--calibration", "--evaluate", "evaluate"])
@pytest.mark.parametrize("name", list(TEXTS))
def test_a_text_that_cannot_be_read_is_refused(
    name: str, use: str, model: Path, calibrated: list[str], tmp_path: Path, refused: Refused
) -> None:
    file, content, words = TEXTS[name]
    (tmp_path / file).write_bytes(content)
    options = [*calibrated, use, tmp_path / file, "--out", tmp_path / "small"]
    arguments = (
        ["evaluate", model, "--text", tmp_path / file]
        if use == "evaluate"
        else ["prune", model, *options]
    )
    refused(*arguments, says=[re.escape(file), *words])


def test_a_text_shorter_than_a_window_is_refused(
    model: Path, calibrated: list[str], tmp_path: Path, refused: Refused
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Fifteen letters")
    words = ["short.txt has 15 tokens", "one window of 16", "--length"]
    options = [*calibrated, "--calibration", short, "--out", tmp_path / "small"]
    refused("prune", model, *options, says=words)
    words = ["short.txt has 15 tokens", "one window of 64", "--windows"]
    refused("evaluate", model, "--text", short, says=words)
    short.write_text("A")
    refused("evaluate", model, "--text", short, says=["1 tokens", "Give more text"])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("gone.txt", ["No such text: gone.txt", r"\.txt or \.jsonl", "wikitext2", "self"]),
        ("./gone", ["No such text", "wikitext2"]),
        ("folder", ["no .txt or .jsonl file", "Give"]),
        ("nobody/nothing", ["nobody/nothing", "(?i)hub", r"\.txt or \.jsonl"]),
        ("wikitext2", ["wikitext", "(?i)hub", r"\.txt or \.jsonl"]),
    ],
)
def test_a_text_that_is_not_there_is_refused(
    source: str,
    words: list[str],
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    options = [*calibrated, "--calibration", source, "--out", "small"]
    refused("prune", model, *options, says=words)


def test_a_model_is_not_measured_on_its_own_text(model: Path, refused: Refused) -> None:
    message = refused("evaluate", model, "--text", "self", says=["No such text: self", "embedded"])
    assert not re.search(r"one of.*self", message)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--windows", "65"], ["--windows", "between 2 and", "64"]),
        (["--windows", "16,4096"], ["--windows", "between 2 and", "64"]),
        (["--windows", "1"], ["--windows", "between 2 and", "64"]),
        (["--windows", "short,long"], ["--windows 'short,long'", "128,2048"]),
        (["--windows", ""], ["--windows", "128,2048"]),
        (["--tokens", "1"], ["--tokens", "x>=2"]),
        (["--tokens", "-5"], ["--tokens", "x>=2"]),
        (["--tokens", "8"], ["8 tokens", "one window of 64", "--windows"]),
        (["--batch", "0"], ["--batch", "x>=1"]),
        (["--dtype", "fp16"], ["'fp16'", "Did you mean 'float16'"]),
        (["--device", "gpu"], ["'gpu'", "cpu"]),
    ],
    ids=lambda value: " ".join(value) if "--" in value[0] and len(value) == 2 else "",
)
def test_evaluation_settings_out_of_range_are_refused(
    options: list[str], words: list[str], model: Path, text_file: Path, refused: Refused
) -> None:
    refused("evaluate", model, "--text", text_file, *options, says=words)


# --- the folder to write --------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("dry_run", [False, True])
def test_an_existing_folder_that_is_no_model_stays(
    force: bool,
    dry_run: bool,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "letter.txt").write_text("Keep me.")
    options = ["--force"] * force + ["--dry-run"] * dry_run
    words = ["not a model folder" if force else "exists", "another --out"]
    refused("prune", model, *calibrated, "--out", taken, *options, says=words)
    words = words if force else [*words, "--force"]
    refused("prune", model, *calibrated, "--out", taken / "letter.txt", *options, says=words)


def test_an_existing_model_folder_stays_without_force(
    model: Path, calibrated: list[str], refused: Refused
) -> None:
    refused("prune", model, *calibrated, "--out", model, says=["exists", "--force"])


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_model_itself_is_never_replaced(
    dry_run: bool, model: Path, calibrated: list[str], refused: Refused
) -> None:
    options = [*calibrated, "--out", model, "--force", *["--dry-run"] * dry_run]
    refused("prune", model, *options, says=["--out"])


@pytest.mark.parametrize("below", ["letter.txt/small", "letter.txt/deep/er/small", "x" * 300])
def test_a_place_that_cannot_be_written_is_refused(
    below: str,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
) -> None:
    (tmp_path / "letter.txt").write_text("Keep me.")
    words = ["Cannot write to", "File exists|Not a directory|File name too long", "another --out"]
    refused("prune", model, *calibrated, "--out", tmp_path / below, says=words)


def test_a_place_without_permission_is_refused(
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Simulated, because permissions do not bind root."""

    def denied(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(folder_module.Path, "mkdir", denied)
    words = ["Cannot write to", "Permission denied", "another --out"]
    refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_the_folders_as_they_were(
    force: bool, model: Path, calibrated: list[str], tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "deep" / "er" / "small"
    if force:
        shutil.copytree(model, out)
    value("lm_head.weight", float("nan"))(model)
    options = ["--evaluate", "none", "--out", out, *["--force"] * force]
    refused("prune", model, *calibrated, *options, says=["lm_head"])


# --- a full disk ----------------------------------------------------------------------------------


def test_too_little_space_is_refused_before_writing(
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    words = ["weights take", "MiB free", "another --out"]
    refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


FULL: dict[str, Exception] = {
    "oserror": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "quota": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    "safetensors": SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    ),
}


@pytest.mark.parametrize("error", list(FULL))
def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(
    error: str,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(tensors: object, path: Path, **kwargs: object) -> None:
        path.write_bytes(b"half a file")
        raise FULL[error]

    monkeypatch.setattr(shards, "save_file", full)
    words = ["No space left", "nothing was kept", "another --out"]
    refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize("limit", [2**16, 256], ids=["in-weights", "in-config"])
def test_writes_that_the_system_stops_leave_nothing(
    limit: int, model: Path, calibrated: list[str], tmp_path: Path, refused: Refused
) -> None:
    """Not simulated: the system lets no file of this process grow beyond `limit` bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        words = ["No space left", "nothing was kept", "another --out"]
        refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_device_that_fails_in_the_middle_leaves_nothing(
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(tensors: object, path: Path, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: Input/output error (os error 5)")

    monkeypatch.setattr(shards, "save_file", broken)
    words = ["Cannot write to", "Input/output error", "another --out"]
    refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


# --- plans and settings files ---------------------------------------------------------------------


@pytest.fixture
def plan(model: Path, text_file: Path, tmp_path: Path) -> Path:
    """A plan for `model` with a repair."""
    pipeline.prune(
        model,
        calibration=str(text_file),
        samples=4,
        length=16,
        dry_run=True,
        out=tmp_path / "plan",
        ratio=0.3,
    )
    return tmp_path / "plan" / "plan.json"


def keep(units: object, axis: int = 0) -> Callable[[dict[str, Any]], object]:
    return lambda plan: plan["axes"][axis].update(keep=units)


PLANS: dict[str, tuple[Callable[[dict[str, Any]], object], list[str]]] = {
    "keeps-nothing": (keep(""), [r"no unit of layers\.0\.attention", "at least one", '"0"']),
    "mlp-keeps-nothing": (keep("", 1), [r"no unit of layers\.0\.mlp", "at least one"]),
    "out-of-range": (keep("0-99"), [r"layers\.0\.attention", "'0-99'", "0 to 2"]),
    "descending": (keep("2,0"), [r"layers\.0\.attention", "ascending"]),
    "negative": (keep("-1"), [r"layers\.0\.attention", "'-1'", "4-29"]),
    "words": (keep("all"), [r"layers\.0\.attention", "'all'", "4-29"]),
    "more-units-than-there-are": (
        lambda plan: plan["axes"][0].update(units=9, keep="0-8"),
        [r"unit 8 of layers\.0\.attention", "which has 3"],
    ),
    "unknown-axis": (
        lambda plan: plan["axes"][0].update(name="layers.7.mlp"),
        [r"'layers\.7\.mlp'", "does not have"],
    ),
    "other-architecture": (
        lambda plan: plan.update(architecture="0" * 64),
        ["another architecture", "secateur prune MODEL"],
    ),
    "unknown-repair": (lambda plan: plan.update(repair="bais"), ["'bais'", "mean 'bias'"]),
    "unknown-calibration-setting": (
        lambda plan: plan["calibration"].update(sample=4),
        ["'sample'", "mean 'samples'"],
    ),
    "calibration-text-gone": (
        lambda plan: plan["calibration"].update(calibration="/gone/text.txt"),
        ["/gone/text.txt", "Give"],
    ),
    "other-format": (lambda plan: plan.update(format="plan-9"), ["Not a plan", "plan.json"]),
    "no-axes": (lambda plan: plan.pop("axes"), ["(?i)not a whole plan", "'axes'"]),
    "keep-a-list": (keep([0, 1]), [r"layers\.0\.attention", "keep"]),
    "axes-a-text": (lambda plan: plan.update(axes="all"), ["(?i)not a whole plan", "axes"]),
    "units-a-text": (
        lambda plan: plan["axes"][0].update(units="3"),
        [r"layers\.0\.attention", "units"],
    ),
    "calibration-a-list": (
        lambda plan: plan.update(calibration=[]),
        ["(?i)not a whole plan", "calibration"],
    ),
    "settings-a-text": (
        lambda plan: plan.update(settings="x"),
        ["(?i)not a whole plan", "settings"],
    ),
    "architecture-a-number": (
        lambda plan: plan.update(architecture=7),
        ["(?i)not a whole plan", "architecture"],
    ),
    "axis-twice": (
        lambda plan: plan["axes"].append(plan["axes"][0]),
        [r"layers\.0\.attention", "twice"],
    ),
}


@pytest.mark.parametrize(("edit", "words"), cases(PLANS))
def test_a_plan_edited_into_nonsense_is_refused(
    edit: Callable[[dict[str, Any]], object],
    words: list[str],
    plan: Path,
    model: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    content = json.loads(plan.read_text())
    edit(content)
    plan.write_text(json.dumps(content))
    refused("apply", plan, model, "--out", tmp_path / "small", says=words)


def test_a_plan_for_a_model_of_another_size_is_refused(
    plan: Path, tiny_folder: Callable[..., Path], tmp_path: Path, refused: Refused
) -> None:
    other = tiny_folder(intermediate_size=64)
    words = ["another architecture or size", "secateur prune MODEL"]
    refused("apply", plan, other, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize("text", ['{"format": ', "[]", "7", ""], ids=repr)
def test_a_file_that_is_no_plan_is_refused(
    text: str, model: Path, tmp_path: Path, refused: Refused
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    refused("apply", file, model, "--out", tmp_path / "small", says=["Not a plan"])


def test_a_plan_that_is_not_there_is_refused(model: Path, tmp_path: Path, refused: Refused) -> None:
    words = ["Cannot read the plan", "No such file", "secateur prune MODEL"]
    refused("apply", tmp_path / "gone.json", model, "--out", tmp_path / "small", says=words)
    refused("apply", model, model, "--out", tmp_path / "small", says=words)
    refused("inspect", model, "--against", model, says=["no plan.json"])


def test_a_file_that_is_no_plan_is_named(text_file: Path, refused: Refused) -> None:
    refused("inspect", text_file, says=[re.escape(text_file.name), "Not a plan|not a plan"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[settings]\nratoi = 0.3\n", ["'ratoi'", "Did you mean 'ratio'"]),
        ("[settings]\nratio = '0.3'\n", ["ratio", "'0.3'", "number"]),
        ("[settings]\nratio = 3\n", ["ratio", "less than 1"]),
        ("[settings]\nmethod = 'flop'\n", ["'flop'", "Did you mean 'flap'"]),
        ("[settings]\nsamples = 1.5\n", ["samples", "1.5", "integer"]),
        ("[settings\n", ["run.toml is not TOML", "line 1"]),
        ("ratio = 0.3\n", [r"no table \[settings\]"]),
        ("settings = 3\n", [r"no table \[settings\]"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_settings_file_that_makes_no_sense_is_refused(
    text: str, words: list[str], model: Path, tmp_path: Path, refused: Refused
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    options = [model, "--config", file, "--out", tmp_path / "small"]
    refused("prune", *options, says=words)


def test_a_settings_file_that_cannot_be_read_is_refused(
    model: Path, tmp_path: Path, refused: Refused
) -> None:
    small = tmp_path / "small"
    gone = tmp_path / "gone.toml"
    refused("prune", model, "--config", gone, "--out", small, says=["gone.toml", "No such file"])
    refused("prune", model, "--config", tmp_path, "--out", small, says=["Is a directory"])
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xff\xfe")
    refused("prune", model, "--config", file, "--out", small, says=["Cannot read", "run.toml"])
    file.write_text("[settings]\nratio = 0.3\n")
    refused("prune", "--config", file, "--out", small, says=["No model given", "prune MODEL"])


def test_errors_leave_standard_output_to_json(
    model: Path, calibrated: list[str], tmp_path: Path, refused: Refused
) -> None:
    options = [*calibrated, "--ratio", "2", "--json", "--out", tmp_path / "small"]
    refused("prune", model, *options, says=["ratio"])


# --- interrupts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "stage",
    ["calibration_windows", "scores", "added_biases", "write_model", "copy_companions"],
)
def test_an_interrupt_after_any_stage_leaves_nothing(
    stage: str,
    force: bool,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home: Any = pipeline.stages if hasattr(pipeline.stages, stage) else pipeline.run
    original = getattr(home, stage)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(home, stage, interrupted)
    out = tmp_path / "deep" / "small"
    if force:
        shutil.copytree(model, out)
    options = [*calibrated, "--out", out, *["--force"] * force]
    refused("prune", model, *options, says=["Interrupted; nothing was left behind"], code=130)


def test_an_interrupt_between_the_two_renames_gives_the_old_folder_back(
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise KeyboardInterrupt
        return original(self, target)

    out = tmp_path / "small"
    shutil.copytree(model, out)
    monkeypatch.setattr(Path, "rename", rename)
    options = [*calibrated, "--out", out, "--force"]
    refused("prune", model, *options, says=["Interrupted"], code=130)


def test_a_terminated_process_leaves_nothing(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("All work and no play makes Jack a dull boy. " * 40_000)
    before = snapshot(tmp_path)
    command = [sys.executable, "-m", "secateur", "prune", str(model), "--calibration", str(text)]
    process = subprocess.Popen(
        [*command, "--samples", "4096", "--out", str(tmp_path / "small")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".small.partial-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "Interrupted; nothing was left behind.")
    assert snapshot(tmp_path) == before
