"""The benchmark on the command line: one JSON object, tables, sentences, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import secateur
from conftest import tiny_model
from secateur.cli.benching import show
from secateur.errors import SecateurError
from secateur.report import findings

Said = Callable[..., str]
Refused = Callable[..., str]
QUICK = ["--batch-sizes", "1,2", "--contexts", "8,4", "--seconds", "2"]


@pytest.fixture
def pair(tiny_folder: Callable[..., Path]) -> tuple[Path, Path]:
    """A smaller model and the dense one."""
    return tiny_folder(intermediate_size=40, num_key_value_heads=2, num_attention_heads=4), (
        tiny_folder()
    )


def test_json_is_one_object_whose_numbers_the_models_bear_out(
    pair: tuple[Path, Path], said: Said
) -> None:
    small, dense = pair
    out = said("bench", small, "--against", dense, *QUICK, "--json")
    assert out.count("\n") == 1
    found = json.loads(out)
    for one, folder in zip(found["models"], pair, strict=True):
        model = secateur.load(str(folder))
        assert one["parameters"] == sum(p.numel() for p in model.parameters())
        assert one["weights"]["float32"] == one["weights"]["stored"] == 4 * one["parameters"]
        assert [cache["bytes"] for cache in one["cache"]] == [
            3 * 2 * batch * context * model.config.num_key_value_heads * 10 * 4
            for batch in (1, 2)
            for context in (4, 8)
        ]
        assert list(one["macs"]["token"]) == ["4", "8"]
    assert {(c["stage"], c["batch"], c["context"]) for c in found["timed"]} == {
        (stage, batch, context)
        for stage in ("prompt", "decoding")
        for batch in (1, 2)
        for context in (4, 8)
    }
    ratio = found["models"][1]["parameters"] / found["models"][0]["parameters"]
    for case in found["timed"]:
        assert case["rounds"] >= 1
        low, median, high = (case["speedup"][key] for key in ("low", "median", "high"))
        assert 0 < low <= median <= high
        assert case["of_parameter_ratio"] == pytest.approx(median / ratio)
        if case["stage"] == "decoding":
            for seconds, rate in zip(case["seconds"], case["tokens_per_second"], strict=True):
                assert rate == pytest.approx(case["batch"] / seconds["median"])


def test_tables_fit_a_narrow_terminal_and_sentences_say_what_to_type(
    pair: tuple[Path, Path], said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = said("bench", pair[0], "--against", pair[1], *QUICK)
    tables = [line for line in out.splitlines() if line[:1] in "┏┃┡│└"]
    assert max(map(len, tables)) <= 80
    for word in ("parameters", "first", "tokens/s", "rounds", "Q4_K_M", "MLP", "times as"):
        assert word in " ".join(out.split())
    assert "All 3 MLP widths are no multiples of 32" in out
    assert "prune with --align 32" in out
    assert "of the parameter ratio" in out


def test_nothing_is_timed_in_no_seconds_and_one_model_has_no_ratio(model: Path, said: Said) -> None:
    found = json.loads(said("bench", model, "--seconds", "0", "--json"))
    assert (found["timed"], len(found["models"])) == ([], 1)
    assert list(found["models"][0]["macs"]["token"]) == ["64"]  # as far as the model goes
    out = said("bench", model, "--seconds", "0")
    assert "times as fast" not in out
    assert "share" not in out


def test_widths_that_engines_like_need_no_cure(
    tiny_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 256, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    folder = tiny_folder("llama-mha", **sizes, intermediate_size=512)
    numbers = secateur.bench(folder, seconds=0.0).numbers
    assert findings(numbers) == []
    assert numbers["models"][0]["aligned"] == {}
    model = tiny_model("llama-mha", **sizes, intermediate_size=516)
    odd = secateur.bench(model, against=folder, seconds=0.0).numbers
    said = findings(odd)
    assert any("All 3 MLP widths are no multiples of 32" in one for one in said)
    assert any("With --align 32 and as many channels" in one for one in said)
    show(odd)
    assert "refused" in capsys.readouterr().out


def test_a_cut_that_quantises_to_more_than_the_dense_model_is_named(
    tiny_folder: Callable[..., Path],
) -> None:
    sizes = {"hidden_size": 256, "head_dim": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    dense = tiny_model("llama-gqa", num_key_value_heads=4, intermediate_size=512, **sizes)
    cut = tiny_model("llama-gqa", num_key_value_heads=4, intermediate_size=508, **sizes)
    numbers = secateur.bench(cut, against=dense, seconds=0.0).numbers
    said = " ".join(findings(numbers))
    assert "LARGER" in said
    assert numbers["models"][0]["gguf"]["Q4_K_M"]["in_16_bits"] == 2


def test_models_that_are_in_memory_stay_as_they_were() -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = secateur.bench(model, batch_sizes=[2], contexts=4, seconds=1.0)
    assert found.numbers["settings"]["batch_sizes"] == "2"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_bad_values_are_refused(model: Path, tmp_path: Path, assert_refused: Refused) -> None:
    bad: dict[tuple[str, ...], list[str]] = {
        ("--contexts", "128"): ["128", "64 tokens", "--contexts 64"],
        ("--contexts", "8,x"): ["8,x", "--contexts 128,1024"],
        ("--batch-sizes", "0"): ["--batch-sizes 0", "above zero"],
        ("--batch-sizes", "1,,2"): ["1,,2", "--batch-sizes 1,4"],
        ("--seconds", "-1"): ["seconds", "greater than or equal"],
        ("--seconds", "inf"): ["seconds", "finite|less than"],
        ("--dtype", "int8"): ["int8", "float32"],
        ("--device", "tpu"): ["tpu"],
        ("--against", str(tmp_path / "gone")): ["No such model folder"],
    }
    for options, words in bad.items():
        assert_refused("bench", model, *options, says=words)
    assert_refused("bench", tmp_path / "gone", says=["No such model folder"])
    with pytest.raises(SecateurError, match="batch_sizes"):
        secateur.bench(model, batch_sizes=1.5)  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match="seconds"):
        secateur.bench(model, secnds=1)  # type: ignore[call-arg]
