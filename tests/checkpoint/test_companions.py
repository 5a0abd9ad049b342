"""What travels with a model beside its weights, and what does not."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import transformers

import secateur
from conftest import cached, tiny_model, tiny_tokenizer
from secateur.checkpoint import companions, travelling
from secateur.checkpoint.companions import LARGEST

TRAVELS = {
    "LICENSE": "free",
    "LICENSE.pdf": "%PDF",
    "NOTICE.txt": "notice",
    "USE_POLICY.md": "be good",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    "assets/deep/er/picture.png": "png",
    "chat_template.jinja": "{{ messages }}",
    "qwen.tiktoken": "IQ== 0",
    "spiece.model": "\0",
    "tekken.json": "{}",
    "tokenizer.model.v3": "\0",
    "vocab.json": '{"auto_map": 7}',
    "trainer_state.json": "[1, ",
    "notes/README.md": "notes",
}
STAYS = {
    "README.md": "# Theirs",
    "consolidated.00.pth": "w",
    "consolidated.safetensors": "w",
    "gguf/model-Q4.gguf": "w",
    "gguf/config.json": "{}",
    "model.fp16.safetensors": "w",
    "onnx/model.onnx": "w",
    "onnx/model.onnx_data": "w",
    "onnx/tokenizer.json": "{}",
    "optimizer.pt": "w",
    "original/params.json": "{}",
    "original/tokenizer.model": "\0",
    "params.json": "{}",
    "pytorch_model.bin": "w",
    "pytorch_model.bin.index.json": "{}",
    "tf_model.h5": "w",
    "adapter_config.json": "{}",
    "plan.json": "{}",
    "run.toml": "",
    "recovery.toml": "",
    "conversion.toml": "",
    ".cache/huggingface/download/a.lock": "",
    ".git/config": "",
    ".gitattributes": "",
    "tokenization_x.py": "code",
    "tokenizer_evil.py": "code",
    "custom_generate/generate.py": "code",
    "custom_generate/requirements.txt": None,
    "run.sh": "code",
    "lib/x.so": "code",
    "try.ipynb": "code",
    "setup": "#!/bin/sh\necho code",
    "weights.pkl": "code",
}
OURS = {"config.json", "model.safetensors", "plan.json", "run.toml", "README.md"}
OURS |= {"report.json", "report.html"}


def put(folder: Path, files: dict[str, Any]) -> None:
    for name, text in files.items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def prune(folder: Any, out: Path, **settings: Any) -> Any:
    given = {"method": "magnitude", "ratio": 0, "evaluate": "none", **settings}
    return secateur.prune(folder, out=out, merge_adapter=False, **given)


def test_every_file_that_is_no_weight_travels_byte_for_byte(
    tiny_folder: Any, tmp_path: Path
) -> None:
    folder, out = tiny_folder(), tmp_path / "out"
    dense = files_of(folder)
    put(folder, TRAVELS | STAYS)
    result = prune(folder, out)
    assert files_of(out) == dense | set(TRAVELS) | OURS
    for name in TRAVELS:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    told = next(note for note in result.notes if "left behind (code)" in note)
    for name in ("tokenizer_evil.py", "custom_generate/generate.py", "run.sh", "setup"):
        assert name in told
    assert not (out / "README.md").read_text().startswith("# Theirs")


def test_what_a_recovery_writes_has_them_too(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    folder, out = tiny_folder(), tmp_path / "out"
    put(folder, TRAVELS | STAYS | {"plan.json": None, "run.toml": None, "README.md": None})
    for name in ("plan.json", "run.toml", "README.md"):
        (folder / name).unlink(missing_ok=True)
    secateur.recover(
        folder, recipe="lora", data=str(text_file), steps=1, samples=4, length=16,
        evaluate="none", out=out, merge_adapter=False,
    )  # fmt: skip
    assert set(TRAVELS) <= files_of(out)
    assert not (set(STAYS) - {"README.md", "recovery.toml"}) & files_of(out)


EVIL = {"AutoTokenizer": ["attacker/repo--tok.EvilTok", None]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"auto_map": EVIL, "tokenizer_class": "EvilTok"}),
        ("tokenizer_config.json", {"auto_map": list(EVIL["AutoTokenizer"])}),
        ("generation_config.json", {"custom_generate": "attacker/repo", "top_k": 3}),
        ("preprocessor_config.json", {"image": {"auto_map": EVIL}, "size": [1, 2]}),
        ("sub/processor_config.json", {"auto_map": "x"}),
        ("other.json", [{"auto_map": EVIL}]),
    ],
)
@pytest.mark.parametrize("escaped", [False, True])
def test_no_json_asks_for_code(
    name: str, content: Any, escaped: bool, tiny_folder: Any, tmp_path: Path
) -> None:
    """However it is spelled where readers look; what else there is in the file stays."""
    folder, out = tiny_folder(), tmp_path / "out"
    text = json.dumps(content)
    if escaped and name != "other.json":  # no reader takes code from there
        text = text.replace("auto_map", r"auto\u005fmap").replace("custom_g", r"custom\u005fg")
    put(folder, {name: text})
    result = prune(folder, out)
    written = json.loads((out / name).read_text())
    assert "auto_map" not in str(written)
    assert "custom_generate" not in str(written)
    if isinstance(content, dict):
        kept = {k: v for k, v in content.items() if k in ("top_k", "size", "tokenizer_class")}
        assert kept.items() <= written.items()
    assert any(f"{name} came without" in note for note in result.notes)


def test_a_broken_config_of_the_tokenizer_stays_behind(tiny_folder: Any, tmp_path: Path) -> None:
    folder, out = tiny_folder(), tmp_path / "out"
    for name, text in (("broken_config.json", '{"auto_map": '), ("deep_config.json", "[" * 99999)):
        (folder / name).write_text(text)
    result = prune(folder, out)
    assert not {"broken_config.json", "deep_config.json"} & files_of(out)
    assert sum("left behind (not JSON)" in note for note in result.notes) == 2


def test_links_out_of_the_model_are_not_followed(tiny_folder: Any, tmp_path: Path) -> None:
    """Neither of files nor of folders; links inside of it are files like others."""
    secret = tmp_path / "secret"
    put(secret, {"id_rsa": "PRIVATE", "folder/key": "PRIVATE"})
    folder, out = tiny_folder(), tmp_path / "out"
    put(folder, {"real.txt": "here"})
    (folder / "LICENSE").symlink_to(secret / "id_rsa")
    (folder / "tokenizer_extra.txt").symlink_to("../secret/id_rsa")
    (folder / "keys").symlink_to(secret / "folder")
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "gone.txt").symlink_to("nothing.txt")
    (folder / "again.txt").symlink_to("real.txt")
    result = prune(folder, out)
    assert "PRIVATE" not in "".join(p.read_text() for p in out.glob("*[!s]") if p.is_file())
    names = files_of(out)
    assert not {"LICENSE", "tokenizer_extra.txt", "keys/key", "loop.txt", "gone.txt"} & names
    assert (out / "again.txt").read_text() == "here"
    assert not (out / "again.txt").is_symlink()
    told = " ".join(result.notes)
    assert "LICENSE, keys, tokenizer_extra.txt" in told
    assert "links that lead out of the model's folder" in told


def test_links_into_the_cache_of_the_same_model_are_followed(
    tiny_folder: Any, tmp_path: Path
) -> None:
    folder = tiny_folder()
    put(folder, {"LICENSE": "free", "deep/er/x.jinja": "x"})
    snapshot = cached(folder, tmp_path / "hub")
    put(tmp_path / "hub" / "models--org--other" / "blobs", {"key": "PRIVATE"})
    (snapshot / "NOTICE").symlink_to("../../../models--org--other/blobs/key")
    linked = tmp_path / "linked"
    linked.symlink_to(snapshot)
    for model in (snapshot, linked):
        out = tmp_path / f"out-{model.name}"
        prune(model, out)
        assert (out / "LICENSE").read_text() == "free"
        assert (out / "deep" / "er" / "x.jinja").read_text() == "x"
        assert "NOTICE" not in files_of(out)


def test_what_cannot_be_read_or_is_too_large_is_left_with_a_note(
    tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tiny_folder(), tmp_path / "out"
    put(folder, {"LICENSE": "free", "notes.txt": "unreadable"})
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(LARGEST + 1)
    os.mkfifo(folder / "pipe")
    opened = Path.open

    def forbidding(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "notes.txt":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", forbidding)
    result = prune(folder, out)
    assert "LICENSE" in files_of(out)
    assert not {"notes.txt", "huge.txt", "pipe"} & files_of(out)
    told = " ".join(result.notes)
    for words in ("Permission denied): notes.txt", "larger than 100 MiB): huge.txt", "pipe"):
        assert words in told


def test_a_live_tokenizer_writes_no_code_and_a_class_that_others_know(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.init_kwargs["auto_map"] = EVIL
    tokenizer._auto_map = EVIL
    prune(model, tmp_path / "out", tokenizer=tokenizer)
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in written
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("ab").input_ids == tokenizer("ab").input_ids
    assert not [name for name in files_of(tmp_path / "out") if name.startswith(".")]


def test_settings_of_a_live_model_that_transformers_would_not_save_are_written(
    tmp_path: Path,
) -> None:
    """A temperature without sampling: many folders on the hub have that."""
    model = tiny_model()
    model.generation_config.temperature = 0.3
    prune(model, tmp_path / "out", tokenizer=tiny_tokenizer())
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["temperature"] == 0.3


@pytest.mark.parametrize("stated", ["LlamaTokenizer", "PreTrainedTokenizerFast", "Other", None])
@pytest.mark.parametrize("variant", ["llama-gqa", "qwen2-gqa", "gpt2", "phi3"])
def test_the_tokenizer_of_what_is_cut_is_of_the_same_class(
    variant: str, stated: str | None, tiny_folder: Any, tmp_path: Path
) -> None:
    """AutoTokenizer goes by the model's type, too, which is another in a pruned folder."""
    folder, out = tiny_folder(variant), tmp_path / "out"
    raw = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": stated}
    written = {key: value for key, value in raw.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    prune(folder, out, method="random", layers="1-2", ratio=0.2, align=1)
    assert (out / "modeling_secateur.py").exists()
    dense, cut = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, out))
    assert type(dense) is type(cut)
    assert dense("ab c").input_ids == cut("ab c").input_ids


def test_names_of_the_hub_are_chosen_by_the_same_rule(tmp_path: Path) -> None:
    put(tmp_path, TRAVELS | STAYS)
    names = {name for name, text in (TRAVELS | STAYS).items() if text is not None}
    assert set(travelling(names)) - {"setup"} == set(companions(tmp_path)[0]) == set(TRAVELS)
