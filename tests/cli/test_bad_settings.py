"""Settings, texts and plans that make no sense: exit code 2, the cause and the cure."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import cases
from secateur import pipeline
from secateur.cli.main import run

SUPPORTED = "llama, mistral, qwen2, qwen3"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Refused = Callable[..., str]
Spoil = Callable[[Path], None]


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
        (["--attention-ratio", "1"], ["attention_ratio", "less than 1"]),
        (
            ["--attention-ratio", "0.2", "--method", "flap"],
            ["search 'AL-AM' finds out itself", "--search AL-MM"],
        ),
        (
            ["--attention-ratio", "0.2", "--attention-units", "2", "--search", "AL-MM"],
            ["--attention-units", "--attention-ratio"],
        ),
        (["--granularity", "channel", "--attention-layers", "1"], ["attention", "--granularity"]),
        (["--granularity", "layer", "--mlp-layers", "1", "--repair", "none"], ["mlp"]),
        (["--importance", "magnitude-l2", "--fusion", "fine"], ["--importance and --fusion"]),
        (
            ["--rescore", "--granularity", "layer", "--repair", "none", "--method", "hywia"],
            ["--rescore takes one score", "--importance taylor-first"],
        ),
        (["--mlp-layers", "0-9"], ["--mlp-layers", "'0-9'", "0 to 2"]),
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
    assert_refused: Callable[..., str],
) -> None:
    assert_refused("prune", model, *calibrated, *options, "--out", tmp_path / "small", says=words)


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
    assert_refused: Callable[..., str],
) -> None:
    words = [given, f"Did you mean '{meant}'", r"Known: |one of |expected"]
    assert_refused(
        "prune", model, *calibrated, option, given, "--out", tmp_path / "small", says=words
    )


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
        (["evaluate"], ["Missing argument 'MODEL'", "secateur evaluate --help"]),
        (["evaluate", "MODEL"], ["wikitext", "Hugging Face hub", "local .txt"]),
        (["evaluate", "MODEL", "--continuations", "2", "--prompt", "x"], ["--evaluate FILE.txt"]),
        (["evaluate", "MODEL", "--prompt", ""], ["prompt of 0 tokens"]),
        (["evaluate", "MODEL", "--prompt", "x" * 64], ["prompt of 64 tokens", "reads 64 at once"]),
        (["evaluate", "MODEL", "--prompt", "x", "--new-tokens", "0"], ["new_tokens", "1 or more"]),
        (["inspect"], ["Missing argument 'DIR'", "secateur inspect --help"]),
        (["prun", "MODEL"], ["No such command 'prun'", "Did you mean 'prune'"]),
        (["--versoin"], ["--versoin", "--version"]),
    ],
    ids=lambda value: " ".join(value).replace("MODEL", "m") if value[0].islower() else "",
)
def test_misspelt_and_missing_arguments_are_refused(
    arguments: list[str], words: list[str], model: Path, assert_refused: Callable[..., str]
) -> None:
    assert_refused(*[str(model) if a == "MODEL" else a for a in arguments], says=words)


PATHS: dict[str, list[str]] = {
    "prune": ["prune", "X", "--out", "o"],
    "prune --out": ["prune", "m", "--out", "X"],
    "prune --config": ["prune", "m", "--config", "X", "--out", "o"],
    "prune --use": ["prune", "m", "--use", "X", "--out", "o"],
    "prune --calibration": ["prune", "m", "--calibration", "X", "--out", "o"],
    "prune --evaluate": ["prune", "m", "--evaluate", "X", "--method", "random", "--out", "o"],
    "apply": ["apply", "X", "m", "--out", "o"],
    "apply to": ["apply", "m/plan.json", "X", "--out", "o"],
    "recover": ["recover", "X", "--data", "embedded", "--out", "o"],
    "recover --data": ["recover", "m", "--recipe", "lora", "--data", "X", "--out", "o"],
    "recover --teacher": ["recover", "m", "--teacher", "X", "--data", "embedded", "--out", "o"],
    "recover --out": ["recover", "m", "--recipe", "lora", "--data", "embedded", "--out", "X"],
    "recover --config": ["recover", "--config", "X", "--out", "o"],
    "compare": ["compare", "X", "--methods", "flap"],
    "compare --out": ["compare", "m", "--methods", "flap", "--out", "X"],
    "evaluate": ["evaluate", "X", "--evaluate", "embedded"],
    "evaluate --evaluate": ["evaluate", "m", "--evaluate", "X"],
    "inspect": ["inspect", "X"],
    "inspect --against": ["inspect", "m", "--against", "X"],
    "inspect --picture": ["inspect", "m", "--picture", "X.svg"],
    "convert": ["convert", "X", "--out", "o"],
    "discover": ["discover", "X"],
    "discover --picture": ["discover", "m", "--picture", "X.svg"],
}


@pytest.mark.parametrize("typed", PATHS.values(), ids=PATHS)
def test_a_path_that_nothing_can_have_is_refused_wherever_it_stands(
    typed: list[str],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_refused: Callable[..., str],
) -> None:
    """Too long, or in the home of nobody."""
    model.rename(tmp_path / "m")
    pipeline.prune(
        tmp_path / "m", method="random", evaluate="none", dry_run=True, out=tmp_path / "plan"
    )
    (tmp_path / "plan" / "plan.json").rename(tmp_path / "m" / "plan.json")
    monkeypatch.chdir(tmp_path)
    for path in ("a" * 300, "~nobody-here/x"):
        words = [word.replace("X", path) if word[0] == "X" else word for word in typed]
        said = assert_refused(*words, says=["(?i)too long|home|no such|cannot|no folder"])
        assert len(said) < 700


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", "tpu"])
def test_an_unknown_device_is_refused(
    device: str,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    options = [*calibrated, "--device", device, "--out", tmp_path / "small"]
    assert_refused("prune", model, *options, says=[f"'{device}'", r"cpu", "auto"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_refused_where_there_is_none(
    model: Path,
    calibrated: list[str],
    text_file: Path,
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    words = ["no device 'cuda'", "--device cpu"]
    small = tmp_path / "small"
    assert_refused("prune", model, *calibrated, "--device", "cuda", "--out", small, says=words)
    assert_refused("evaluate", model, "--evaluate", text_file, "--device", "cuda", says=words)


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
        b'{"text": "one"}\n\n{"body": "two"}\n',
        ["line 3 has no text", "fields are body", "--field"],
    ),
    "jsonl-number": ("text.jsonl", b'{"text": 7}\n', ["line 1 has no text", "expected"]),
    "jsonl-list": ("text.jsonl", b'["one"]\n', ["line 1 has no text", "expected"]),
}


@pytest.mark.parametrize("use", ["--calibration", "--evaluate", "evaluate"])
@pytest.mark.parametrize("name", list(TEXTS))
def test_a_text_that_cannot_be_read_is_refused(
    name: str,
    use: str,
    model: Path,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    file, content, words = TEXTS[name]
    (tmp_path / file).write_bytes(content)
    options = [*calibrated, use, tmp_path / file, "--out", tmp_path / "small"]
    arguments = (
        ["evaluate", model, "--evaluate", tmp_path / file]
        if use == "evaluate"
        else ["prune", model, *options]
    )
    assert_refused(*arguments, says=[re.escape(file), *words])


def test_a_text_shorter_than_a_window_is_refused(
    model: Path, calibrated: list[str], tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Fifteen letters")
    words = ["short.txt has 15 tokens", "one window of 16", "--length"]
    options = [*calibrated, "--calibration", short, "--out", tmp_path / "small"]
    assert_refused("prune", model, *options, says=words)
    words = ["short.txt has 15 tokens", "one window of 64", "--evaluate-lengths"]
    assert_refused("evaluate", model, "--evaluate", short, says=words)
    short.write_text("A")
    assert_refused("evaluate", model, "--evaluate", short, says=["1 tokens", "Give more text"])


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
    assert_refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    options = [*calibrated, "--calibration", source, "--out", "small"]
    assert_refused("prune", model, *options, says=words)


def test_a_model_is_not_measured_on_its_own_text(
    model: Path, assert_refused: Callable[..., str]
) -> None:
    message = assert_refused(
        "evaluate", model, "--evaluate", "self", says=["No such text: self", "embedded"]
    )
    assert not re.search(r"one of.*self", message)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--evaluate-lengths", "65"], ["--evaluate-lengths", "between 2 and", "64"]),
        (["--evaluate-lengths", "16,4096"], ["--evaluate-lengths", "between 2 and", "64"]),
        (["--evaluate-lengths", "1"], ["--evaluate-lengths", "between 2 and", "64"]),
        (["--evaluate-lengths", "short,long"], ["--evaluate-lengths 'short,long'", "128,2048"]),
        (["--evaluate-lengths", ""], ["--evaluate-lengths", "128,2048"]),
        (["--evaluate-tokens", "1"], ["evaluate_tokens", "greater than or equal to 2"]),
        (["--evaluate-tokens", "-5"], ["evaluate_tokens", "greater than or equal to 2"]),
        (["--evaluate-tokens", "8"], ["8 tokens", "one window of 64", "--evaluate-lengths"]),
        (["--batch", "0"], ["batch", "greater than or equal to 1"]),
        (["--dtype", "fp16"], ["'fp16'", "Did you mean 'float16'"]),
        (["--device", "gpu"], ["'gpu'", "cpu"]),
    ],
    ids=lambda value: " ".join(value) if "--" in value[0] and len(value) == 2 else "",
)
def test_evaluation_settings_out_of_range_are_refused(
    options: list[str],
    words: list[str],
    model: Path,
    text_file: Path,
    assert_refused: Callable[..., str],
) -> None:
    assert_refused("evaluate", model, "--evaluate", text_file, *options, says=words)


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
    assert_refused: Callable[..., str],
) -> None:
    content = json.loads(plan.read_text())
    edit(content)
    plan.write_text(json.dumps(content))
    assert_refused("apply", plan, model, "--out", tmp_path / "small", says=words)


def test_a_plan_for_a_model_of_another_size_is_refused(
    plan: Path, tiny_folder: Callable[..., Path], tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    other = tiny_folder(intermediate_size=64)
    words = ["another architecture or size", "secateur prune MODEL"]
    assert_refused("apply", plan, other, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize(
    "text", ['{"format": ', "[]", "7", "", "[" * 99_999, "1" * 9999], ids=lambda text: text[:9]
)
def test_a_file_that_is_no_plan_is_refused(
    text: str, model: Path, tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    assert_refused("apply", file, model, "--out", tmp_path / "small", says=["Not a plan"])


def test_a_plan_that_is_not_there_is_refused(
    model: Path, tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    words = ["Cannot read the plan", "No such file", "secateur prune MODEL"]
    assert_refused("apply", tmp_path / "gone.json", model, "--out", tmp_path / "small", says=words)
    assert_refused("apply", model, model, "--out", tmp_path / "small", says=words)
    assert_refused("inspect", model, "--against", model, says=["no plan.json"])


def test_a_file_that_is_no_plan_is_named(
    text_file: Path, assert_refused: Callable[..., str]
) -> None:
    assert_refused("inspect", text_file, says=[re.escape(text_file.name), "Not a plan|not a plan"])


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
    text: str, words: list[str], model: Path, tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    options = [model, "--config", file, "--out", tmp_path / "small"]
    assert_refused("prune", *options, says=words)


def test_a_settings_file_that_cannot_be_read_is_refused(
    model: Path, tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    small = tmp_path / "small"
    gone = tmp_path / "gone.toml"
    assert_refused(
        "prune", model, "--config", gone, "--out", small, says=["gone.toml", "No such file"]
    )
    assert_refused("prune", model, "--config", tmp_path, "--out", small, says=["Is a directory"])
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xff\xfe")
    assert_refused(
        "prune", model, "--config", file, "--out", small, says=["Cannot read", "run.toml"]
    )
    file.write_text("[settings]\nratio = 0.3\n")
    assert_refused(
        "prune", "--config", file, "--out", small, says=["No model given", "prune MODEL"]
    )


def test_errors_leave_standard_output_to_json(
    model: Path, calibrated: list[str], tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    options = [*calibrated, "--ratio", "2", "--json", "--out", tmp_path / "small"]
    assert_refused("prune", model, *options, says=["ratio"])


def test_a_choice_that_may_be_left_out_names_what_there_is(
    model: Path, assert_refused: Callable[..., str], tmp_path: Path
) -> None:
    options = ["prune", model, "--scope", "layer_kin", "--out", tmp_path / "x"]
    assert_refused(*options, says=["Did you mean 'layer_kind'", "Known: layer_kind, global"])
