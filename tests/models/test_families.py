"""Families that are traced, in part or whole: what is pruned loads, and is the masked model.

The models are those that tracing itself makes of a type's default config: a few layers, small.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import secateur
from secateur import modeling_secateur
from secateur.errors import SecateurError
from secateur.export.proof import mask, proved
from secateur.modeling_secateur import own_name
from secateur.models import open_model
from secateur.models.discovery import running_model, shallow_config
from secateur.models.discovery.shallow import layer_makes, layers_path, stock_config
from secateur.models.discovery.sizes import check_counts
from secateur.models.streamed import empty_model
from secateur.structure import Plan

sys.path.append(str(Path(__file__).parent.parent.parent / "scripts"))
import family_table

# By type: what is taken of it, what is left whole, by the beginning of its path.
TAKEN: dict[str, tuple[set[str], set[str]]] = {
    "deepseek_v3": ({"kv_group", "channel", "expert_channel"}, set()),
    "minicpm3": ({"kv_group", "channel"}, set()),
    "qwen3_next": ({"kv_group", "channel", "expert_channel"}, {"linear_attn", "mlp"}),
    "lfm3": ({"kv_group", "channel"}, {"conv"}),
    "granitemoehybrid": ({"channel", "expert_channel"}, {"mamba"}),
    "bamba": ({"channel"}, {"mamba"}),
    "gpt_bigcode": ({"query_head", "channel"}, set()),
    "diffllama": ({"channel"}, {"self_attn"}),
    "minimax": ({"kv_group", "expert_channel"}, {"self_attn"}),
    "falcon_h1": ({"kv_group", "channel"}, {"mamba"}),
    "jamba": ({"kv_group", "channel", "expert_channel"}, {"mamba"}),
    "deepseek_v32": ({"kv_group", "channel", "expert_channel"}, {"self_attn"}),
    "openai-gpt": ({"kv_group", "channel"}, set()),  # layers return a list
    "xglm": ({"kv_group", "channel"}, set()),  # runs in fp32 alone
    "internlm3": ({"kv_group", "channel"}, set()),  # a config for Llama's models
    "iquestcoder": ({"kv_group", "channel"}, set()),
    "gpt_neox_japanese": ({"kv_group", "channel"}, set()),  # a head called embed_out
    "recurrent_gemma": ({"channel"}, {"temporal_block"}),  # half of intermediate_size
}


def small(kind: str) -> Any:
    """A random fp32 model of the type, with a layer of each kind."""
    config = transformers.AutoConfig.for_model(kind)
    empty = empty_model(config, torch.float32)
    path = layers_path(config, empty)
    assert path is not None
    model = running_model(shallow_config(config, empty, path), 0).to(torch.float32)
    for parameter in model.parameters():
        parameter.data *= 0.3  # or recurrences overflow
    return model


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Without a cache: some default configs have no attention layer, which theirs wants."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def small_tokenizer() -> Any:
    """Digits and spaces are the tokens: the small models know 64."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<pad>": 0} | {chr(code): code for code in range(1, 64)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(name, marks=pytest.mark.slow) for name in TAKEN],
)
def test_what_is_taken_is_the_masked_model(kind: str, tmp_path: Path) -> None:
    dense = small(kind)
    opened, _ = proved(open_model(dense))
    taken, whole = TAKEN[kind]
    assert {axis.granularity for axis in opened.structure.axes} == taken
    assert {left.module.partition(".")[0] for left in opened.left} == whole
    text = tmp_path / "text.txt"
    text.write_text(" ".join(str(number * number) for number in range(400)))
    ids = torch.tensor([[48, 49, 32, 50, 57, 33]])
    # the second has to stream through the layers, with the arguments that each kind gets
    for method in ("magnitude", "flap"):
        result = secateur.prune(
            dense, out=tmp_path / method, method=method, repair="none", ratio=0.2, align=1,
            calibration=str(text), samples=4, length=16, evaluate="none",
            tokenizer=small_tokenizer(),
        )  # fmt: skip
        assert result.numbers["removed_share"] > 0.1
        masked = small(kind)
        plan = Plan.from_json((tmp_path / method / "plan.json").read_text())
        mask(masked, opened.structure, plan)
        pruned = secateur.load(tmp_path / method, dtype=torch.float32, attn_implementation="eager")
        pruned.config._experts_implementation = "eager"
        buffers = dict(masked.named_buffers())
        for name, buffer in pruned.named_buffers():  # those that no checkpoint holds included
            if buffer.shape == buffers[name].shape:
                torch.testing.assert_close(buffer, buffers[name], check_dtype=False)
        torch.testing.assert_close(logits(pruned, ids), logits(masked, ids), rtol=1e-3, atol=1e-3)


def test_an_empty_model_of_hundreds_of_billions_takes_no_memory() -> None:
    config = transformers.AutoConfig.for_model("deepseek_v3")
    model = empty_model(config, torch.float32)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(p.numel() for p in model.parameters()) > 6e11
    assert sum(buffer.numel() for buffer in model.buffers()) < 1e6
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_a_mask_as_large_as_a_weight_is_built() -> None:
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_size": 4, "vocab_size": 8}
    sizes |= {"attention_types": [[["global"], 1]], "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPTNeoConfig(max_position_embeddings=4097, **sizes)
    (mask,) = empty_model(config, torch.float32).buffers()
    assert torch.equal(mask[0, 0].sum(dim=1), torch.arange(1, 4098))


def test_an_empty_model_of_another_dtype_leaves_the_config_alone() -> None:
    config = transformers.AutoConfig.for_model("llama", num_hidden_layers=1, dtype=torch.bfloat16)
    assert empty_model(config, torch.float32).dtype == torch.float32
    assert config.dtype == torch.bfloat16


def test_a_config_for_another_familys_models_has_pruned_classes_of_its_own() -> None:
    """InternLM3's config is for Llama's models: neither takes the other's name."""
    assert own_name("InternLM3Config", "LlamaForCausalLM") == "SecateurInternLM3ForCausalLM"
    assert own_name("Gemma3TextConfig", "Gemma3ForCausalLM") == "SecateurGemma3ForCausalLM"
    for family in ("InternLM3", "Llama"):
        own = getattr(modeling_secateur, f"Secateur{family}ForCausalLM")
        assert issubclass(own, transformers.LlamaForCausalLM)
        assert own.config_class.model_type == f"secateur_{family.lower()}"


def test_heads_that_do_not_divide_the_width_are_read_all_the_same() -> None:
    """A pruned model has them; some classes refuse them."""
    raw = {"hidden_size": 48, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8}
    config = stock_config(transformers.InternLM3Config, raw)
    assert type(config) is transformers.InternLM3Config
    assert config.num_attention_heads == 5


def test_few_layers_show_every_kind() -> None:
    """Jamba: attention in every eighth layer from 4 on, experts in every second from 1 on."""
    config = transformers.AutoConfig.for_model("jamba")
    model = empty_model(config, torch.float32)
    shallow = shallow_config(config, model, "model.layers")
    assert shallow.num_hidden_layers == 5
    makes = layer_makes(empty_model(shallow, torch.float32), "model.layers")
    assert set(makes) == set(layer_makes(model, "model.layers"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("mamba", "recurrence"),
        ("gemma3n_text", "keys and values of earlier ones"),
        ("fuyu", "persimmon"),
    ],
)
def test_what_is_refused_is_so_for_a_true_reason(kind: str, words: str) -> None:
    with pytest.raises(SecateurError, match=words):
        check_counts(transformers.AutoConfig.for_model(kind))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "arcee",
        "deepseek_v3",
        "bert",
        "mamba",
        "qwen3_next",
        "gemma3n_text",
        "xglm",
        "internlm3",
        "inkling2_text",
    ],
)
def test_rows_of_the_page_are_still_true(kind: str) -> None:
    """`scripts/family-table` writes it anew."""
    assert family_table.row(kind).line() in family_table.PAGE.read_text(encoding="utf-8")
