"""What is read is what transformers reads: odd checkpoints give the same logits, or are refused."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import secateur
from conftest import cases, logits
from secateur.cli.main import run
from secateur.stats import Walk

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
IDS = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(3))
Tensors = dict[str, torch.Tensor]


def other(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor of the same shape."""
    return 0.2 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(11))


def stored(folder: Path, held: Tensors, name: str = SINGLE) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    save_file({key: t.contiguous() for key, t in held.items()}, folder / name, {"format": "pt"})


def indexed(folder: Path, weight_map: dict[str, str], name: str = INDEX) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / name).write_text(json.dumps(index))


def config(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))


def sharded(folder: Path, held: Tensors, names: tuple[str, str], *, index: str = INDEX) -> None:
    """Every other tensor in each of two files."""
    parts = {names[i]: dict(list(held.items())[i::2]) for i in (0, 1)}
    for name, part in parts.items():
        stored(folder, part, name)
    indexed(folder, {key: name for name, part in parts.items() for key in part}, index)
    (folder / SINGLE).unlink(missing_ok=True)


def odd_names(folder: Path, held: Tensors) -> None:
    sharded(folder, held, ("b model.safetensors-00001-of-00002.safetensors", "a.safetensors"))


def in_a_folder(folder: Path, held: Tensors) -> None:
    sharded(folder, held, ("parts/b.safetensors", "parts/../parts/a.safetensors"))


def single_and_stale_index(folder: Path, held: Tensors) -> None:
    sharded(folder, {n: other(t) for n, t in held.items()}, ("a.safetensors", "b.safetensors"))
    stored(folder, held)


def single_and_index_of_nothing(folder: Path, held: Tensors) -> None:
    indexed(folder, dict.fromkeys(held, "gone.safetensors"))


def twice_in_shards(folder: Path, held: Tensors) -> None:
    """The index names the first; the last by name is what counts."""
    stored(folder, held, "a.safetensors")
    stored(folder, {NORM: other(held[NORM])}, "b.safetensors")
    indexed(folder, dict.fromkeys(held, "a.safetensors") | {"more": "b.safetensors"})
    (folder / SINGLE).unlink()


def index_maps_otherwise(folder: Path, held: Tensors) -> None:
    """Which tensor lies in which file is not what the index says."""
    sharded(folder, held, ("a.safetensors", "b.safetensors"))
    names = list(held)
    indexed(folder, {name: "ab"[i > 0] + ".safetensors" for i, name in enumerate(names)})


def index_lists_too_much(folder: Path, held: Tensors) -> None:
    sharded(folder, held, ("a.safetensors", "b.safetensors"))
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["vision.weight"] = "a.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def named_file(folder: Path, held: Tensors) -> None:
    stored(folder, {name: other(t) for name, t in held.items()})
    stored(folder, held, "other.safetensors")
    config(folder, transformers_weights="other.safetensors")


def named_index(folder: Path, held: Tensors) -> None:
    sharded(folder, held, ("a.safetensors", "b.safetensors"), index="my.safetensors.index.json")
    stored(folder, {name: other(t) for name, t in held.items()})
    config(folder, transformers_weights="my.safetensors.index.json")


def extra(folder: Path, held: Tensors) -> None:
    stored(folder, held | {f"model.layers.{i}.mlp.gate_scale": torch.ones(3) for i in range(5)})


def ignored_extra(folder: Path, held: Tensors) -> None:
    """Old buffers that transformers does not speak of either."""
    stored(folder, held | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5)})


def no_prefix(folder: Path, held: Tensors) -> None:
    stored(folder, {name.removeprefix("model."): t for name, t in held.items()})


def prefix_too_many(folder: Path, held: Tensors) -> None:
    stored(folder, {("model." if "lm_head" in n else "") + n: t for n, t in held.items()})


def both_prefixes(folder: Path, held: Tensors) -> None:
    """The first in the natural order of names counts, which is not always the one with it."""
    query = "layers.0.self_attn.q_proj.weight"
    stored(folder, held | {query: other(held[f"model.{query}"])})


def other_head(folder: Path, held: Tensors) -> None:
    stored(folder, held | {HEAD: other(held[EMBEDDING])})


def other_head_in_the_last_row(folder: Path, held: Tensors) -> None:
    head = held[EMBEDDING].clone()
    head[-1] += 1
    stored(folder, held | {HEAD: head})


def same_head(folder: Path, held: Tensors) -> None:
    stored(folder, held | {HEAD: held[EMBEDDING].clone()})


def head_alone(folder: Path, held: Tensors) -> None:
    stored(folder, {HEAD if name == EMBEDDING else name: t for name, t in held.items()})


def no_dtype(folder: Path, held: Tensors) -> None:
    stored(folder, {name: t.bfloat16() for name, t in held.items()})
    config(folder, dtype=None)


# What is made of the checkpoint, and what we say of it (None: nothing).
Spoil = Callable[[Path, Tensors], None]
ODD: dict[str, tuple[str, Spoil, str | None]] = {
    "odd-names": ("llama-gqa", odd_names, None),
    "in-a-folder": ("llama-gqa", in_a_folder, None),
    "single-and-stale-index": ("llama-gqa", single_and_stale_index, "those of model.safetensors"),
    "single-and-index": ("llama-gqa", single_and_index_of_nothing, "those of model.safetensors"),
    "twice": ("llama-gqa", twice_in_shards, "first model.norm.weight in a.safetensors and b."),
    "index-otherwise": ("llama-gqa", index_maps_otherwise, None),
    "index-too-much": ("llama-gqa", index_lists_too_much, None),
    "named-file": ("llama-gqa", named_file, None),
    "named-index": ("llama-gqa", named_index, None),
    "extra": ("llama-gqa", extra, "LlamaForCausalLM does not have: 5 .model.layers.0.mlp.gate_sc"),
    "ignored-extra": ("llama-gqa", ignored_extra, None),
    "no-prefix": ("llama-gqa", no_prefix, None),
    "prefix-too-many": ("llama-gqa", prefix_too_many, None),
    "both-prefixes": (
        "llama-gqa",
        both_prefixes,
        "model.layers.0.self_attn.q_proj.weight is left out",
    ),
    "other-head": ("llama-tied", other_head, "ties lm_head.weight to model.embed_tokens.weight"),
    "other-head-gemma": ("gemma2", other_head, "ties lm_head.weight to model.embed_tokens.weight"),
    "other-last-row": ("llama-tied", other_head_in_the_last_row, "not tied"),
    "same-head": ("llama-tied", same_head, None),
    "head-alone": ("llama-tied", head_alone, None),
    "no-dtype": ("llama-gqa", no_dtype, None),
}


def streamed_logits(opened: Any) -> torch.Tensor:
    source = opened.streamed(device="cpu", dtype="float32")
    walk = Walk(source, IDS, batch=2)
    states = walk.embed()
    for step in walk.layers():
        step.run(states)
    with source.back() as head:
        return head(states.tensor)


def loaded(folder: Path) -> tuple[Any, list[str]]:
    """What transformers loads, and what it warns of."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    finally:
        logger.removeHandler(handler)
    return model.eval(), said


def spoiled(make: Any, variant: str, spoil: Spoil) -> Path:
    folder = make(variant)
    held = load_file(folder / SINGLE)
    if "gemma" in variant:
        held.pop(HEAD, None)
    spoil(folder, held)
    return folder


@pytest.mark.parametrize(("variant", "spoil", "note"), cases(ODD))
def test_an_odd_checkpoint_is_read_as_transformers_reads_it(
    variant: str, spoil: Spoil, note: str | None, tiny_folder: Any, tmp_path: Path
) -> None:
    """So do the dense model's logits agree, and those of what is written of it."""
    folder = spoiled(tiny_folder, variant, spoil)
    expected, warned = loaded(folder)
    opened = secateur.open_model(folder)
    assert torch.allclose(streamed_logits(opened), logits(expected, IDS), atol=1e-5)
    told = [line for line in opened.notes if note and re.search(note, line)]
    assert len(told) == len(opened.notes) == (note is not None), opened.notes
    if warned:
        assert note is not None, warned
    out = tmp_path / "out"
    result = secateur.prune(folder, ratio=0, method="magnitude", evaluate="none", out=out)
    assert set(opened.notes) <= set(result.notes)
    again, complaints = loaded(out)
    assert not complaints
    assert torch.allclose(logits(again, IDS), logits(expected, IDS), atol=1e-5)


def test_a_head_stored_apart_stays_in_what_is_cut(tiny_folder: Any, tmp_path: Path) -> None:
    """In the form that the stock class cannot hold, too: the cut model keeps the stored head."""
    folder = spoiled(tiny_folder, "llama-tied", other_head)
    out = tmp_path / "out"
    secateur.prune(
        folder, method="random", search="uniform", layers="1-2", ratio=0.2, align=1,
        evaluate="none", out=out,
    )  # fmt: skip
    head = load_file(folder / SINGLE)[HEAD]
    model, _ = loaded(out)
    assert type(model).__name__ == "SecateurLlamaForCausalLM"
    assert torch.equal(model.lm_head.weight, head)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.allclose(streamed_logits(secateur.open_model(out)), logits(model, IDS), atol=1e-5)


def outside(folder: Path, held: Tensors) -> None:
    stored(folder.parent, held, "outside.safetensors")
    indexed(folder, dict.fromkeys(held, "../outside.safetensors"))
    (folder / SINGLE).unlink()


def outside_in_disguise(folder: Path, held: Tensors) -> None:
    outside(folder, held)
    indexed(folder, dict.fromkeys(held, "parts/../../outside.safetensors"))


def absolute(folder: Path, held: Tensors) -> None:
    outside(folder, held)
    indexed(folder, dict.fromkeys(held, str(folder.parent / "outside.safetensors")))


def named_outside(folder: Path, held: Tensors) -> None:
    outside(folder, held)
    config(folder, transformers_weights="../outside.safetensors")


def named_pickle(folder: Path, held: Tensors) -> None:
    config(folder, transformers_weights="pytorch_model.bin")


def named_a_number(folder: Path, held: Tensors) -> None:
    config(folder, transformers_weights=7)


def named_and_gone(folder: Path, held: Tensors) -> None:
    config(folder, transformers_weights="gone.safetensors")


def pickles_listed(folder: Path, held: Tensors) -> None:
    sharded(folder, held, ("a.bin", "b.safetensors"))


def numbers_listed(folder: Path, held: Tensors) -> None:
    indexed(folder, {key: ["a"] for key in held})  # type: ignore[misc]
    (folder / SINGLE).unlink()


def tensor_in_no_shard(folder: Path, held: Tensors) -> None:
    sharded(
        folder, {n: t for n, t in held.items() if n != NORM}, ("a.safetensors", "b.safetensors")
    )
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][NORM] = "a.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def distributed(folder: Path, held: Tensors) -> None:
    stored(folder, held, "shard-00000-model-00001-of-00001.safetensors")


REFUSED: dict[str, tuple[Spoil, list[str]]] = {
    "outside": (outside, [r"\.\./outside\.safetensors", "outside of the model's folder"]),
    "outside-in-disguise": (outside_in_disguise, ["outside of the model's folder"]),
    "absolute": (absolute, ["outside of the model's folder"]),
    "named-outside": (named_outside, ["config.json names", "outside of the model's folder"]),
    "named-pickle": (named_pickle, ["transformers_weights", "neither a safetensors file"]),
    "named-a-number": (named_a_number, ["names 7 as transformers_weights"]),
    "named-and-gone": (named_and_gone, ["lacks gone.safetensors", "transformers_weights"]),
    "pickles-listed": (pickles_listed, [r"lists a\.bin", "save_pretrained"]),
    "numbers-listed": (numbers_listed, ["without a name"]),
    "tensor-in-no-shard": (tensor_in_no_shard, ["lacks the tensor model.norm.weight"]),
    "distributed": (distributed, ["distributed training", "save_pretrained"]),
}


@pytest.mark.parametrize(("spoil", "words"), cases(REFUSED))
def test_what_transformers_would_not_read_soundly_is_refused(
    spoil: Spoil, words: list[str], tiny_folder: Any, tmp_path: Path, assert_refused: Any
) -> None:
    folder = spoiled(tiny_folder, "llama-gqa", spoil)
    assert_refused("prune", folder, "--evaluate", "none", "--out", tmp_path / "out", says=words)


@pytest.mark.parametrize("command", ["prune", "apply", "evaluate", "recover", "compare", "inspect"])
def test_every_command_tells_what_was_left_out(
    command: str, tiny_folder: Any, text_file: Path, tmp_path: Path, capsys: Any
) -> None:
    folder, out = spoiled(tiny_folder, "llama-gqa", extra), tmp_path / "out"
    few = ["--calibration", text_file, "--samples", 2, "--length", 16, "--evaluate", "none"]
    plan = tmp_path / "plan"
    secateur.prune(folder, method="magnitude", evaluate="none", dry_run=True, out=plan)
    arguments: list[Any] = {
        "prune": ["prune", folder, "--method", "magnitude", "--evaluate", "none", "--out", out],
        "apply": ["apply", plan, folder, "--evaluate", "none", "--out", out],
        "evaluate": ["evaluate", folder, "--evaluate", text_file, "--evaluate-tokens", "40",
                     "--evaluate-lengths", "16"],
        "recover": ["recover", folder, "--recipe", "lora", "--data", text_file, "--steps", "1",
                    "--samples", "4", "--length", "16", "--evaluate", "none", "--out", out],
        "compare": ["compare", folder, "--methods", "magnitude", "--ratios", "0.1", *few],
        "inspect": ["inspect", folder],
    }[command]  # fmt: skip
    capsys.readouterr()
    assert run([str(one) for one in arguments]) == 0
    assert "tensors of the checkpoint that LlamaForCausalLM does not have: 5" in " ".join(
        capsys.readouterr().err.split()
    )


def test_the_size_is_that_of_the_files_that_are_read(tiny_folder: Any) -> None:
    """A second copy of the weights beside them, as Mistral's repositories have, does not count."""
    folder = tiny_folder()
    size = secateur.pipeline.inspect(folder)["facts"]["weights on disk, MB"]
    (folder / "consolidated.safetensors").write_bytes((folder / SINGLE).read_bytes())
    assert secateur.pipeline.inspect(folder)["facts"]["weights on disk, MB"] == size
