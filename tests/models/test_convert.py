"""Checkpoints of Baichuan-7B: read as the llamas that they are, pruned as such, written as such."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

import secateur
from conftest import baichuan_tensors, cases, snapshot, tiny_model, tiny_tokenizer
from secateur import pipeline
from secateur.cli.main import run
from secateur.errors import SecateurError

WEIGHTS = "model.safetensors"
FORMS: dict[str, dict[str, Any]] = {
    "one-file": {},
    "shards": {"shards": 3},
    "names-of-the-base-model": {"prefix": "model."},
    "second-spelling": {"architectures": ["BaichuanForCausalLM"]},
    "model_max_length": {"max_position_embeddings": None, "model_max_length": 64},
}

Baichuan = Callable[..., tuple[Path, Path]]


def made(baichuan: Baichuan, form: str) -> tuple[Path, Path]:
    """The second spelling is told from Baichuan2 by its vocabulary, which so must be the real."""
    wide = form == "second-spelling"
    llama = tiny_model("llama-mha", vocab_size=64000) if wide else None
    return baichuan(**FORMS[form], llama=llama)


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def stock(folder: Path) -> Any:
    """transformers alone, no flag: no code of the folder could run."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


# --- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_it_opens_as_the_llama_that_it_is(form: str, baichuan: Baichuan) -> None:
    llama, packed = (secateur.open_model(folder) for folder in made(baichuan, form))
    assert packed.structures == llama.structures  # the hash of the weights is a part of it
    assert packed.weights.specs == llama.weights.specs
    for name in llama.weights.specs:
        assert torch.equal(packed.weights.tensor(name), llama.weights.tensor(name)), name
        assert torch.equal(packed.weights.head(name), llama.weights.head(name)), name
    assert packed.tokenizer.encode("a tree") == llama.tokenizer.encode("a tree")
    assert (packed.context, packed.dtype) == (llama.context, llama.dtype)


def test_a_part_of_the_packed_tensor_is_read_alone(baichuan: Baichuan) -> None:
    """A view would keep all three in memory as long as one lives."""
    opened = secateur.open_model(baichuan()[1])
    part = opened.weights.tensor("model.layers.0.self_attn.k_proj.weight")
    assert part.untyped_storage().nbytes() == part.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_loads_whole(dtype: torch.dtype, baichuan: Baichuan, tokens: torch.Tensor) -> None:
    llama, packed = baichuan(llama=tiny_model("llama-mha").to(dtype))
    loaded = secateur.load(packed)
    assert loaded.dtype == dtype
    assert torch.equal(logits(loaded, tokens), logits(stock(llama), tokens))


def test_every_look_at_it_is_that_at_the_llama(baichuan: Baichuan, text_file: Path) -> None:
    llama, packed = baichuan()
    found = [pipeline.evaluate(folder, str(text_file)) for folder in (llama, packed)]
    assert found[0] == found[1]
    looks = [pipeline.inspect(folder) for folder in (llama, packed)]
    for look in looks:
        look["facts"].pop("weights on disk, MB")  # the old buffers
    assert looks[0] == looks[1]


# --- pruning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["magnitude", "flap"])
@pytest.mark.parametrize("form", ["one-file", "shards"])
def test_pruned_it_is_the_pruned_llama(
    form: str,
    method: str,
    baichuan: Baichuan,
    calibrated: list[str],
    tmp_path: Path,
    tokens: torch.Tensor,
) -> None:
    options = ["--method", method, "--ratio", "0.3", *calibrated]
    small = {}
    for folder in made(baichuan, form):
        out = small[folder.name] = tmp_path / f"small-{folder.name}"
        assert run(["prune", str(folder), *options, "--out", str(out)]) == 0
    configs = [json.loads((out / "config.json").read_text()) for out in small.values()]
    assert configs[0]["architectures"] == configs[1]["architectures"]
    assert {name.name for name in small["dense"].iterdir()} == {
        name.name for name in small["packed"].iterdir()
    }
    models = [secateur.load(out) for out in small.values()]
    dense = logits(secateur.load(tmp_path / "dense"), tokens)
    assert torch.equal(logits(models[0], tokens), logits(models[1], tokens))
    assert not torch.equal(logits(models[0], tokens), dense)
    if configs[1]["model_type"] == "llama":
        assert torch.equal(logits(stock(small["packed"]), tokens), logits(models[0], tokens))
    again = transformers.AutoTokenizer.from_pretrained(small["packed"])
    assert again.encode("a tree") == tiny_tokenizer().encode("a tree")


def test_a_uniform_cut_of_it_loads_without_the_package(
    baichuan: Baichuan, calibrated: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "small"
    options = ["--method", "magnitude", "--ratio", "0.3", *calibrated]
    assert run(["prune", str(baichuan()[1]), *options, "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert not list(out.glob("*.py"))


def test_its_own_text_calibrates_it(baichuan: Baichuan, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"samples": 2, "length": 16, "evaluate": "none", "align": 1}
    plans = [
        pipeline.prune(folder, calibration="self", dry_run=True, **settings).plan
        for folder in baichuan()
    ]
    assert plans[0].keep == plans[1].keep


# --- converting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_converted_it_has_the_logits_of_the_llama(
    dtype: torch.dtype, form: str, baichuan: Baichuan, tmp_path: Path, tokens: torch.Tensor
) -> None:
    vocabulary = 64000 if form == "second-spelling" else 128
    model = tiny_model("llama-mha", vocab_size=vocabulary).to(dtype)
    llama, packed = baichuan(llama=model, **FORMS[form])
    out = tmp_path / "converted"
    assert run(["convert", str(packed), "--out", str(out)]) == 0
    converted = stock(out)
    assert type(converted) is transformers.LlamaForCausalLM
    assert converted.dtype == dtype
    assert torch.equal(logits(converted, tokens), logits(stock(llama), tokens))
    assert load_file(out / WEIGHTS).keys() == model.state_dict().keys()
    config = json.loads((out / "config.json").read_text())
    assert "auto_map" not in config
    assert config["torch_dtype"] == config["dtype"] == str(dtype).removeprefix("torch.")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.encode("a tree") == tiny_tokenizer().encode("a tree")


def test_its_card_says_what_it_is_and_how_it_loads(baichuan: Baichuan, tmp_path: Path) -> None:
    _, packed = baichuan()
    (packed / "README.md").write_text("---\nlicense: mit\ntags: [zh]\n---\n# Theirs")
    (packed / "LICENSE").write_text("free")
    out = tmp_path / "converted"
    pipeline.convert(packed, out=out)
    card = (out / "README.md").read_text()
    assert "# packed, converted" in card
    assert "plain `LlamaForCausalLM` checkpoint" in card
    assert "mit; see LICENSE" in card
    assert "Theirs" not in card
    assert str(tmp_path) not in card
    head = yaml.safe_load(card[4:].split("\n---\n")[0])
    assert (head["license"], head["tags"]) == ("mit", ["secateur", "zh"])


def test_what_it_says_is_what_there_is(
    baichuan: Baichuan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama, packed = baichuan()
    (packed / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    capsys.readouterr()
    out = tmp_path / "converted"
    assert run(["convert", str(packed), "--out", str(out), "--json"]) == 0
    said, err = capsys.readouterr()
    assert err == ""
    held = load_file(out / WEIGHTS)
    assert json.loads(said) == {
        "out": str(out),
        "architecture": "LlamaForCausalLM",
        "form": {"stock": True, "class": "LlamaForCausalLM", "why_not_stock": ""},
        "parameters": sum(tensor.numel() for tensor in held.values()),
        "bytes": (out / WEIGHTS).stat().st_size,
        "notes": [],
    }
    for model in (stock(out), secateur.load(packed)):
        assert model.generation_config.eos_token_id == [2, 7]
    assert run(["convert", str(packed), "--out", str(out)]) == 2  # it exists
    assert run(["convert", str(packed), "--out", str(out), "--force"]) == 0
    assert snapshot(llama).keys() <= snapshot(out).keys()
    capsys.readouterr()


# --- Baichuan2 ------------------------------------------------------------------------------------


class NormHead(torch.nn.Linear):
    """The head of Baichuan2: cosines with the rows, not products."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ (self.weight / self.weight.norm(dim=1, keepdim=True)).T


SECOND: dict[str, Any] = {
    "architectures": ["BaichuanForCausalLM"],
    "model_max_length": 64,
    "z_loss_weight": 0,
}


def test_the_head_of_the_second_is_normalised_once(
    baichuan: Baichuan, tmp_path: Path, tokens: torch.Tensor
) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    llama = tiny_model("llama-mha", vocab_size=125696, **sizes)
    _, packed = baichuan(llama=llama, **SECOND)
    out = tmp_path / "converted"
    assert run(["convert", str(packed), "--out", str(out)]) == 0
    weights = secateur.open_model(packed).weights
    head = weights.tensor("lm_head.weight")
    assert torch.equal(head[:1], weights.head("lm_head.weight"))
    torch.testing.assert_close(head.norm(dim=1), torch.ones(125696))
    plain = logits(llama, tokens)
    normalised = NormHead(16, 125696, bias=False)
    normalised.weight = llama.lm_head.weight
    llama.lm_head = normalised
    found = logits(stock(out), tokens)
    torch.testing.assert_close(found, logits(llama, tokens))
    assert not torch.allclose(found, plain)


# --- refused --------------------------------------------------------------------------------------


THIRTEEN: dict[str, Any] = {
    "architectures": ["BaichuanForCausalLM"],
    "max_position_embeddings": None,
    "model_max_length": 64,
}
UNLIKE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "13B": (
        {**THIRTEEN, "hidden_size": 5120, "num_attention_heads": 40, "vocab_size": 64000},
        ["Baichuan-13B", "ALiBi", "5120, 40 heads, no max_position", "Baichuan2-7B", "give one"],
    ),
    "13B-by-its-context": ({**THIRTEEN, "vocab_size": 64000}, ["ALiBi", "no max_position"]),
    "13B-with-a-context": ({"num_attention_heads": 40}, ["ALiBi", "40 heads"]),
    "13B-by-its-width": ({"hidden_size": 5120}, ["ALiBi", "hidden_size 5120"]),
    "of-unknown-vocabulary": (
        {"architectures": ["BaichuanForCausalLM"]},
        ["vocabulary of 128", "64000", "125696", "If it is Baichuan-7B, write"],
    ),
    "second-of-another-vocabulary": (SECOND, ["vocabulary of 128", "125696", "z_loss_weight"]),
    "second-and-tied": (
        {**SECOND, "vocab_size": 125696, "tie_word_embeddings": True},
        ["ties its embeddings", "tie_word_embeddings false"],
    ),
    "no-width": ({"hidden_size": None}, ["no number for hidden_size", "again"]),
    "of-another-width": ({"hidden_size": 24}, [r"\[144, 48\]", r"\[72, 24\]", "belong together"]),
    "of-other-heads": ({"num_attention_heads": 7}, ["q_proj|make sense"]),
    "of-another-vocabulary": ({"vocab_size": 99}, ["embed_tokens", r"\[99, 48\]"]),
    "of-senseless-eps": ({"rms_norm_eps": "small"}, ["does not make sense", "rms_norm_eps"]),
    "quantised": ({"quantization_config": {"bits": 4}}, ["is quantised"]),
}


@pytest.mark.parametrize("command", ["convert", "prune"])
@pytest.mark.parametrize(("changes", "words"), cases(UNLIKE))
def test_a_baichuan_that_is_no_llama_is_refused(
    changes: dict[str, Any],
    words: list[str],
    command: str,
    baichuan: Baichuan,
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    _, packed = baichuan(**changes)
    assert_refused(command, packed, "--out", tmp_path / "deep" / "out", says=words)


def without_rows(held: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.self_attn.W_pack.weight"
    held[name] = held[name][:96].clone()  # q and k


def without_layer(held: dict[str, torch.Tensor]) -> None:
    held.pop("model.layers.1.self_attn.W_pack.weight")


def not_finite(held: dict[str, torch.Tensor]) -> None:
    held["model.layers.1.self_attn.W_pack.weight"][50, 3] = float("nan")


SPOILED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], list[str]]] = {
    "rows-missing": (
        without_rows,
        [r"layers\.1\.self_attn\.W_pack", r"\[96, 48\]", r"\[144, 48\]", "q, k and v"],
    ),
    "tensor-missing": (without_layer, [r"lacks the tensor model\.layers\.1", "again"]),
    # Found while the shards are written: what stands there by then must go.
    "not-finite": (not_finite, ["NaN or infinity", r"layers\.1\.self_attn\.k_proj", "again"]),
}


@pytest.mark.parametrize(("spoil", "words"), cases(SPOILED))
def test_spoiled_weights_leave_nothing_behind(
    spoil: Callable[[dict[str, torch.Tensor]], None],
    words: list[str],
    baichuan: Baichuan,
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    _, packed = baichuan()
    held = baichuan_tensors(tiny_model("llama-mha"))
    spoil(held)
    save_file(held, packed / WEIGHTS, metadata={"format": "pt"})
    assert_refused("convert", packed, "--out", tmp_path / "deep" / "out", says=words)


def test_a_failed_conversion_keeps_what_force_would_have_replaced(
    baichuan: Baichuan, tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    _, packed = baichuan()
    out = tmp_path / "converted"
    assert run(["convert", str(packed), "--out", str(out)]) == 0
    held = baichuan_tensors(tiny_model("llama-mha"))
    not_finite(held)
    save_file(held, packed / WEIGHTS, metadata={"format": "pt"})
    assert_refused("convert", packed, "--out", out, "--force", says=["NaN or infinity"])


def test_what_needs_no_conversion_is_said_so(
    baichuan: Baichuan, tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    llama, packed = baichuan()
    words = ["needs no conversion", "llama", "secateur prune"]
    assert_refused("convert", llama, "--out", tmp_path / "out", says=words)
    assert_refused("convert", packed, says=["Where to", "--out DIR"])
    assert_refused("convert", tmp_path / "gone", "--out", tmp_path / "out", says=["No such model"])
    words = ["holds the model", "another --out"]
    assert_refused("convert", packed, "--out", packed, "--force", says=words)


def test_pickles_are_refused(
    baichuan: Baichuan, tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    _, packed = baichuan()
    (packed / WEIGHTS).rename(packed / "pytorch_model.bin")
    assert_refused("convert", packed, "--out", tmp_path / "out", says=["pickle", "can run code"])


# --- the tokenizer --------------------------------------------------------------------------------


def remote_tokenizer(folder: Path, **settings: Any) -> None:
    """The tokenizer files of the hub, but for the code and the model: settings that name a class
    which is not there."""
    (folder / "tokenizer.json").unlink()
    own = {
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaiChuanTokenizer", None]},
        "tokenizer_class": "BaiChuanTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(own | settings))


def sentencepiece_model(path: Path, text: Path, **options: Any) -> Any:
    """Train one on `text`, with the options that Baichuan's has."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    like = {
        "add_dummy_prefix": False,
        "byte_fallback": True,
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "minloglevel": 2,
    }
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text.read_text().splitlines()),
            model_writer=file,
            vocab_size=310,
            **(like | options),
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("adds", [{}, {"add_bos_token": True}])
def test_the_tokenizer_gives_the_ids_of_sentencepiece(
    adds: dict[str, bool], prefix: bool, baichuan: Baichuan, text_file: Path, tmp_path: Path
) -> None:
    _, packed = baichuan()
    remote_tokenizer(packed, **adds)
    wanted = sentencepiece_model(packed / "tokenizer.model", text_file, add_dummy_prefix=prefix)
    out = tmp_path / "converted"
    assert run(["convert", str(packed), "--out", str(out)]) == 0
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert "auto_map" not in settings
    for tokenizer in (
        secateur.open_model(packed).tokenizer,
        transformers.AutoTokenizer.from_pretrained(out),
    ):
        for text in ("The 7 gardener cuts", "tree\n29, 园", "rests."):
            assert tokenizer.encode(text) == [1] * len(adds) + wanted.encode(text)
        assert tokenizer.eos_token_id == 2


def test_a_tokenizer_that_transformers_would_read_otherwise_is_refused(
    baichuan: Baichuan, text_file: Path
) -> None:
    _, packed = baichuan()
    remote_tokenizer(packed)
    rule = {"normalization_rule_name": "nmt_nfkc_cf"}  # lower case
    sentencepiece_model(packed / "tokenizer.model", text_file, **rule)
    with pytest.raises(SecateurError, match=r"other tokens(.|\n)*tokenizer\.json"):
        _ = secateur.open_model(packed).tokenizer


@pytest.mark.parametrize("content", [b"", b"\xff" * 99, None])
def test_a_broken_tokenizer_is_refused(
    content: bytes | None,
    baichuan: Baichuan,
    calibrated: list[str],
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    _, packed = baichuan()
    remote_tokenizer(packed)
    if content is not None:
        (packed / "tokenizer.model").write_bytes(content)
    words = ["tokenizer", "does not load", "Copy the tokenizer files"]
    assert_refused("prune", packed, *calibrated, "--out", tmp_path / "small", says=words)


def test_without_sentencepiece_the_model_is_converted_and_the_tokenizer_missed(
    baichuan: Baichuan,
    calibrated: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, packed = baichuan()
    remote_tokenizer(packed)
    (packed / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr("secateur.models.baichuan._installed", lambda name: False)
    words = ["sentencepiece model", "pip install sentencepiece protobuf"]
    assert_refused("prune", packed, *calibrated, "--out", tmp_path / "small", says=words)
    out = tmp_path / "converted"
    assert run(["convert", str(packed), "--out", str(out)]) == 0
    assert re.search("no tokenizer was written(.|\n)*pip install", capsys.readouterr().err)
    assert stock(out)
    assert not list(out.glob("tokenizer*"))
