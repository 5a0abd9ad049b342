"""What is pruned under a profile, its engine holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.errors import SecateurError
from secateur.profiles import PROFILES

QUICK: dict[str, Any] = {"samples": 8, "length": 16, "evaluate": "none", "prompts": 0}
WIDE = {"intermediate_size": 160}


def widths(folder: Path) -> list[int]:
    layers = secateur.load(folder).model.layers
    return [layer.mlp.down_proj.in_features for layer in layers]


@pytest.mark.parametrize("variant", ["llama-gqa", "mistral-mha", "qwen3-gqa", "gemma3"])
@pytest.mark.parametrize("profile", ["uniform", "gguf", "vllm"])
@pytest.mark.parametrize("method", ["best", "flap"])
def test_the_engine_of_the_profile_holds_the_result(
    variant: str,
    profile: str,
    method: str,
    tiny_folder: Callable[..., Path],
    text_file: Path,
    tmp_path: Path,
) -> None:
    layers = {"num_hidden_layers": 6} if variant == "gemma3" else {}
    folder, small = tiny_folder(variant, **WIDE, **layers), tmp_path / "small"
    even = {"search": "uniform"} if method == "flap" else {}
    result = secateur.prune(
        folder, out=small, ratio=0.4, profile=profile, calibration=str(text_file),
        effort="fast", method=method, **QUICK, **even,
    )  # fmt: skip
    target = {"gguf": "gguf"}.get(profile, "uniform")
    secateur.export_model(small, to=target, out=tmp_path / "out", no_tokenizer=True)
    stock = result.numbers["form"]["stock"]
    assert stock or (profile == "gguf" and variant in ("llama-gqa", "mistral-mha"))
    assert all(width % PROFILES[profile].row == 0 for width in widths(small))
    assert result.numbers["removed_share"] > 0.3
    if method == "flap" and stock:  # the classes of all but llama have no place for its biases
        told = [note for note in result.notes if "the repair is refit-no-bias, not bias" in note]
        assert len(told) == (variant != "llama-gqa")


def test_a_plan_made_under_a_profile_says_so_and_is_repeated(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("qwen3-gqa", **WIDE)
    common = {"calibration": str(text_file), "effort": "fast", **QUICK}
    secateur.prune(folder, out=tmp_path / "a", profile="gguf", ratio=0.4, **common)
    again = secateur.prune(
        **secateur.config.read_toml(tmp_path / "a" / "run.toml"), out=tmp_path / "b"
    )
    plans = [json.loads((tmp_path / name / "plan.json").read_text())["axes"] for name in "ab"]
    assert plans[0] == plans[1]
    assert again.config.profile == "gguf"


@pytest.mark.parametrize(
    ("variant", "settings", "says"),
    [
        ("bloom", {"profile": "gguf"}, "knows no layers of the family 'bloom'"),
        ("llama-gqa", {"profile": "gguf", "align": 8}, "Type --align 32"),
        ("llama-gqa", {"profile": "vllm", "align": 96}, "Type --align 128"),
        ("llama-gqa", {"profile": "onnx"}, "Unknown profile 'onnx'"),
        ("llama-gqa", {"profile": "uniform", "layers": "1"}, "every layer must lose the same"),
        ("llama-gqa", {"tensor_parallel": 2}, "layer 0 has 3 KV heads"),
        ("llama-gqa", {"tensor_parallel": 3}, "layer 0 has 56 MLP channels"),
        ("qwen3-biased", {"tensor_parallel": 4}, "the model has 6 query heads"),
    ],
)
def test_what_does_not_go_with_a_profile_is_refused(
    variant: str,
    settings: dict[str, Any],
    says: str,
    tiny_folder: Callable[..., Path],
    text_file: Path,
) -> None:
    with pytest.raises(SecateurError, match=says):
        secateur.prune(
            tiny_folder(variant), calibration=str(text_file), method="magnitude", **QUICK,
            **settings,
        )  # fmt: skip


@pytest.mark.contest
def test_what_a_profile_costs_is_told(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    """Beside the ways that keep to it stands the plan without one; it is never the one taken."""
    folder = tiny_folder("llama-gqa", **WIDE)
    common = {**QUICK, "calibration": str(text_file), "ratio": 0.4, "effort": "good"}
    result = secateur.prune(folder, out=tmp_path / "small", profile="uniform", **common)
    told = [note for note in result.notes if note.startswith("--profile uniform: KL to the dense")]
    assert len(told) == 1
    rows = result.numbers["contest"]
    (free,) = (row for row in rows if row["profile"] == "free")
    few = [row["divergence"] for row in rows if row["windows"] == free["windows"] and row != free]
    assert f"{min(few):.3f}" in told[0]
    assert f"{free['divergence']:.3f}" in told[0]
    assert result.config.profile == "uniform"
    assert result.numbers["form"]["stock"]
    page = json.loads((tmp_path / "small" / "report.json").read_text())
    assert {way["profile"] for way in page["contest"]} == {"free", "uniform"}
    plain = secateur.prune(folder, out=tmp_path / "free", **common)
    assert {row["profile"] for row in plain.numbers["contest"]} == {"free"}


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize(
    "how",
    [
        {"method": "flap", "attention_ratio": 0.4, "search": "AL-MM"},
        {"method": "flap"},
        {"method": "magnitude", "search": "uniform", "profile": "uniform"},
        {"method": "magnitude", "granularity": "kv_group,query_head,channel", "search": "AL-AM"},
    ],
)
def test_devices_share_out_what_is_left(
    devices: int,
    how: dict[str, Any],
    tiny_folder: Callable[..., Path],
    text_file: Path,
    tmp_path: Path,
) -> None:
    sizes: dict[str, Any] = {"num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 4}
    folder = tiny_folder("llama-gqa", **WIDE | {"intermediate_size": 144}, **sizes)
    given = {"calibration": str(text_file), "tensor_parallel": devices, "align": 4, **QUICK}
    secateur.prune(folder, out=tmp_path / "small", ratio=0.4, **given, **how)
    layers = secateur.load(tmp_path / "small").model.layers
    heads = [layer.self_attn.q_proj.out_features // 4 for layer in layers]
    groups = [layer.self_attn.k_proj.out_features // 4 for layer in layers]
    assert min(groups) < 6
    assert all(count % devices == 0 for count in (*heads, *groups, *widths(tmp_path / "small")))
    facts = secateur.inspect(tmp_path / "small")
    assert devices in facts["facts"]["tensor-parallel sizes"]


def test_fewer_groups_than_devices_are_left_alone(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("llama-mqa", **WIDE)
    given = {"calibration": str(text_file), "tensor_parallel": 2, **QUICK}
    granular = {"granularity": "kv_group,query_head,channel", "search": "AL-AM"}
    secateur.prune(folder, out=tmp_path / "a", method="magnitude", ratio=0.4, **given, **granular)
    layers = secateur.load(tmp_path / "a").model.layers
    head_dim = layers[0].self_attn.head_dim
    heads = [layer.self_attn.q_proj.out_features // head_dim for layer in layers]
    assert min(heads) < 6
    assert all(count % 2 == 0 for count in heads)


def test_experts_are_shared_out_too(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("mixtral", intermediate_size=48)
    secateur.prune(
        folder, out=tmp_path / "small", calibration=str(text_file), tensor_parallel=3, ratio=0.3,
        method="magnitude", granularity="expert_channel", align=1, **QUICK,
    )  # fmt: skip
    model = secateur.load(tmp_path / "small")
    found = [p.shape[-1] for n, p in model.named_parameters() if n.endswith("experts.down_proj")]
    assert found
    assert all(width % 3 == 0 for width in found)
