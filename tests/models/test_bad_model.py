"""Models that cannot be pruned: exit code 2, the cause and the cure, nothing left behind."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from conftest import bound, cases
from secateur import pipeline
from secateur.cli.main import run
from secateur.errors import SecateurError

SUPPORTED = "llama, mistral, qwen2, qwen3"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Refused = Callable[..., str]
Spoil = Callable[[Path], None]


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
    "config-without-type": (written("config.json", "{}"), ["has no model_type"]),
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
        ["'mamba'", "Expected .*attention heads, MLP channels or experts"],
    ),
    "family-unknown-to-transformers": (
        config(model_type="unheard_of", architectures=["UnheardOfForCausalLM"]),
        ["does not know the model family 'unheard_of'", "newer transformers"],
    ),
    "quantised-config": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ["is quantised", "the floating-point model"],
    ),
    "quantised-weights": (
        tensors(
            lambda held: held.update(
                {"model.layers.0.mlp.up_proj.weight": torch.zeros(56, 48, dtype=torch.int8)}
            )
        ),
        ["is quantised", r"layers\.0\.mlp\.up_proj", "int8", "the floating-point model"],
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
    assert_refused: Callable[..., str],
) -> None:
    spoil(model)
    command = ["prune", model, *calibrated, "--method", "flap"]
    assert_refused(*command, "--out", tmp_path / "small", says=words)


@pytest.mark.parametrize("command", ["apply", "evaluate", "inspect"])
def test_every_command_refuses_a_model_that_is_not_there(
    command: str, model: Path, text_file: Path, tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    gone = tmp_path / "gone"
    plan = tmp_path / "plan"
    pipeline.prune(model, method="random", dry_run=True, out=plan)
    arguments = {
        "apply": ["apply", plan, gone, "--out", tmp_path / "small"],
        "evaluate": ["evaluate", gone, "--evaluate", text_file],
        "inspect": ["inspect", gone],
    }
    assert_refused(*arguments[command], says=["No such model folder", "Give a folder"])


@pytest.mark.parametrize(
    "file", ["config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"]
)
def test_a_file_that_may_not_be_read_is_named(
    file: str, model: Path, calibrated: list[str], tmp_path: Path, assert_refused: Refused
) -> None:
    (model / file).chmod(0)
    with bound():
        said = refused_as_it_is(
            "prune", model, *calibrated, "--out", tmp_path / "small", before=tmp_path
        )
    assert re.search(rf"{file}.*Permission denied|Permission denied.*{file}", said), said
    assert "truncated" not in said


def refused_as_it_is(*arguments: object, before: Path) -> str:
    """What a refused command said, where not every file can be read for comparison."""
    names = sorted(before.iterdir())
    out = io.StringIO()
    with contextlib.redirect_stderr(out):
        assert run([str(one) for one in arguments]) == 2, out.getvalue()
    assert sorted(before.iterdir()) == names
    said = out.getvalue()
    assert len(said.splitlines()) <= 2, said
    return said


CLOSED: dict[str, list[str]] = {
    "discover": ["discover", "CLOSED"],
    "inspect": ["inspect", "CLOSED"],
    "inspect --against": ["inspect", "MODEL", "--against", "CLOSED/plan.json"],
    "inspect --picture": ["inspect", "MODEL", "--picture", "CLOSED/x.svg"],
    "convert": ["convert", "CLOSED", "--out", "OUT"],
    "compare": ["compare", "CLOSED", "--methods", "flap"],
    "compare --out": ["compare", "MODEL", "--methods", "magnitude", "--out", "CLOSED/x"],
    "evaluate": ["evaluate", "CLOSED", "--evaluate", "TEXT"],
    "evaluate --evaluate": ["evaluate", "MODEL", "--evaluate", "CLOSED/x.txt"],
    "prune": ["prune", "CLOSED", "--out", "OUT"],
    "prune --out": ["prune", "MODEL", "--out", "CLOSED/x"],
    "prune --use": ["prune", "MODEL", "--use", "CLOSED/x.py", "--out", "OUT"],
    "prune --config": ["prune", "MODEL", "--config", "CLOSED/run.toml", "--out", "OUT"],
    "prune --calibration": ["prune", "MODEL", "--calibration", "CLOSED/x.txt", "--out", "OUT"],
    "apply": ["apply", "CLOSED/plan.json", "MODEL", "--out", "OUT"],
    "recover": ["recover", "CLOSED", "--data", "TEXT", "--out", "OUT"],
    "recover --data": [
        "recover", "MODEL", "--recipe", "lora", "--data", "CLOSED/x", "--out", "OUT",
    ],
    "recover --teacher": [
        "recover", "MODEL", "--teacher", "CLOSED", "--data", "TEXT", "--out", "OUT",
    ],
}  # fmt: skip


@pytest.mark.parametrize("typed", CLOSED.values(), ids=CLOSED)
def test_a_folder_that_may_not_be_entered_is_refused_by_every_command(
    typed: list[str], model: Path, text_file: Path, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    shutil.copytree(model, closed)
    closed.chmod(0)
    places = {"CLOSED": closed, "MODEL": model, "TEXT": text_file, "OUT": tmp_path / "out"}
    for name, place in places.items():
        typed = [word.replace(name, str(place)) for word in typed]
    with bound():
        assert "Permission denied" in refused_as_it_is(*typed, before=tmp_path)


def test_a_file_in_place_of_a_folder_is_refused(
    text_file: Path, tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    assert_refused(
        "prune", text_file, "--out", tmp_path / "small", says=["not a model folder", "Give"]
    )


def test_a_hub_name_that_the_hub_does_not_give_is_refused(
    tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    words = ["no folder nobody/nothing", "hub", "Check the name"]
    assert_refused("prune", "nobody/nothing", "--out", tmp_path / "small", says=words)


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
    assert_refused: Callable[..., str],
) -> None:
    value(tensor, number)(model)
    words = ["NaN or infinity", re.escape(tensor), "again"]
    assert_refused("prune", model, *calibrated, "--out", tmp_path / "small", says=words)


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
    assert_refused: Callable[..., str],
) -> None:
    spoil(model)
    command = ["prune", model, *calibrated, "--method", "flap"]
    assert_refused(*command, "--out", tmp_path / "small", says=words)


def test_a_repair_names_where_it_overflows(
    model: Path, calibrated: list[str], tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    """With a score that needs no tokens: the repair is the first that runs the model."""
    filled(1e30, "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight")(model)
    own = ("--method", "magnitude", "--repair", "refit")
    words = [r"NaN or infinity in .*layers?[. ]1", "--dtype float32"]
    assert_refused("prune", model, *own, *calibrated, "--out", tmp_path / "small", says=words)


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
    spoil: Spoil, words: list[str], model: Path, text_file: Path, assert_refused: Callable[..., str]
) -> None:
    spoil(model)
    assert_refused("evaluate", model, "--evaluate", text_file, says=words)


def test_what_float16_cannot_hold_is_told_the_dtype_that_can(
    tiny_folder: Any, text_file: Path, assert_refused: Callable[..., str]
) -> None:
    """Gemma's activations pass 65,504."""
    folder = tiny_folder("gemma3", dtype=torch.float16)
    filled(60_000.0, "model.layers.0.mlp.down_proj.weight")(folder)
    words = ["computed in float16", "Try --dtype bfloat16 .or float32"]
    told = ["--evaluate", text_file, "--dtype", "float16"]
    assert_refused("evaluate", folder, *told, says=words)


def test_experts_of_another_size_than_config_json_says_are_refused(tiny_folder: Any) -> None:
    """They lie on disk one by one, and the shape of all together is that of the files."""
    folder = tiny_folder("qwen3_moe")
    config = json.loads((folder / "config.json").read_text())
    config["moe_intermediate_size"] += 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SecateurError, match=r"experts\S* has shape \[4, .* config.json says"):
        secateur.open_model(folder)


def test_sizes_below_one_are_refused(tiny_folder: Any) -> None:
    folder = tiny_folder("qwen3-biased")
    config = json.loads((folder / "config.json").read_text())
    del config["num_key_value_heads"]  # the family's default is 32, for 6 heads
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SecateurError, match="gives sizes below 1"):
        _ = pipeline.discover(folder).structure


def test_more_experts_a_token_than_there_are_is_refused(tiny_folder: Any) -> None:
    folder = tiny_folder("qwen3_moe")
    config = json.loads((folder / "config.json").read_text())
    del config["num_experts_per_tok"]  # the family's default is 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SecateurError, match=r"to 8 experts .* has 4"):
        _ = secateur.open_model(folder).structures
