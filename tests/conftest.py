"""Shapes are checked in every test; tiny random models of every family, with odd sizes."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

from typecheck import shaped_modules

install_import_hook(shaped_modules(), "typecheck.checked")

import ctypes  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

import secateur  # noqa: E402  (registers the pruned classes)
from breaking_off import Cut as Cut  # noqa: E402
from documentation import desk as desk  # noqa: E402
from hub_here import hub_here  # noqa: E402
from secateur.cli.main import run  # noqa: E402
from secateur.export.exporters import EXPORTERS  # noqa: E402
from secateur.export.proof import mask  # noqa: E402
from secateur.fusion import FUSIONS  # noqa: E402
from secateur.importance import IMPORTANCE  # noqa: E402
from secateur.methods import EFFORTS, METHODS, Effort, Parts  # noqa: E402
from secateur.models import OpenModel  # noqa: E402
from secateur.pipeline import added_biases  # noqa: E402
from secateur.progress import Lines  # noqa: E402
from secateur.search import SEARCHES  # noqa: E402
from secateur.stats import Walk, collect  # noqa: E402
from secateur.structure import Plan, Structure  # noqa: E402
from secateur.surgery import REPAIRS  # noqa: E402

torch.set_num_threads(1)

SHARED = Path(__file__).parent.parent.parent / "shared"

# Odd sizes on purpose: a head_dim that hidden does not divide into, widths off every grid.
_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-mha": ("Llama", {"num_key_value_heads": 6, "head_dim": 8}),
    "llama-gqa": ("Llama", {}),
    "llama-mqa": ("Llama", {"num_key_value_heads": 1}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "mistral-gqa": ("Mistral", {"sliding_window": 8}),
    "mistral-mha": ("Mistral", {"num_key_value_heads": 6, "sliding_window": None}),
    # Qwen2's config has no head_dim of its own: hidden_size / heads
    "qwen2-gqa": ("Qwen2", {"head_dim": None}),
    "qwen2-sliding": (
        "Qwen2",
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3-gqa": ("Qwen3", {}),
    "qwen3-biased": ("Qwen3", {"attention_bias": True, "num_key_value_heads": 2}),
}
# Families whose configs have their own names for sizes, or no size for something.
_HEADS: dict[str, Any] = {
    "vocab_size": 128,
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT: dict[str, Any] = {**_HEADS, "n_positions": 64, "n_inner": 56}
_FALCON: dict[str, Any] = {**_HEADS, "ffn_hidden_size": 56, "max_position_embeddings": 64}
_ROUTED: dict[str, Any] = {"num_experts_per_tok": 2, "intermediate_size": 24}
VARIANTS |= {
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"sliding_window": 8}),
    "gemma3": ("Gemma3Text", {"sliding_window": 8}),
    "granite": ("Granite", {"residual_multiplier": 0.5, "head_dim": None}),
    "olmo": ("Olmo", {"head_dim": None}),
    "olmo2": ("Olmo2", {"head_dim": None}),
    "smollm3": ("SmolLM3", {"head_dim": None}),
    "stablelm": ("StableLm", {"head_dim": None, "use_parallel_residual": True}),
    "starcoder2": ("Starcoder2", {"head_dim": None, "sliding_window": 8}),
    "cohere": ("Cohere", {"head_dim": None, "use_qk_norm": True}),
    "nemotron": ("Nemotron", {"mlp_bias": True}),
    "phi": ("Phi", {"head_dim": None}),
    "phi3": ("Phi3", {"head_dim": None, "sliding_window": 8}),
    "gpt_neox": ("GPTNeoX", {"head_dim": None, "rotary_pct": 0.5}),
    "gpt_neox-sequential": ("GPTNeoX", {"head_dim": None, "use_parallel_residual": False}),
    "bloom": ("Bloom", _HEADS),
    "falcon": ("Falcon", {**_FALCON, "multi_query": False, "alibi": True, "bias": True}),
    "falcon-mqa": ("Falcon", {**_FALCON, "multi_query": True}),
    "falcon-gqa": ("Falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 3}),
    "mpt": ("Mpt", {**_HEADS, "max_seq_len": 64}),
    "opt": (
        "OPT",
        {**_HEADS, "ffn_dim": 56, "max_position_embeddings": 64, "word_embed_proj_dim": 48},
    ),
    "gpt2": ("GPT2", _GPT),
    "gptj": ("GPTJ", {**_GPT, "rotary_dim": 4}),
    "mixtral": ("Mixtral", {**_ROUTED, "num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3Moe",
        {**_ROUTED, "num_experts": 4, "moe_intermediate_size": 20, "mlp_only_layers": [0]},
    ),
    "olmoe": ("Olmoe", {**_ROUTED, "head_dim": None, "num_experts": 4}),
    "gpt_oss": (
        "GptOss",
        {**_ROUTED, "num_local_experts": 4, "sliding_window": 8, "rope_parameters": _ROPE},
    ),
}
ALL = list(VARIANTS)
# One variant of each layout: what a test over every family runs over.
EVERY_FAMILY = [
    name for name in VARIANTS
    if name not in ("llama-mha", "llama-mqa", "llama-tied", "mistral-mha", "qwen2-sliding")
]  # fmt: skip
# One of each make of code; the rest of a costly test over every family is marked slow.
QUICK = ("llama-gqa", "qwen3-biased", "phi3", "bloom", "falcon-mqa", "gpt2", "olmo2", "gpt_oss")
EVERY_FAMILY_SLOWLY: list[Any] = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY_FAMILY
]
_MODELS = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}


def tiny_model(variant: str = "llama-gqa", seed: int = 0, **changes: Any) -> Any:
    """A random fp32 model whose biases and norms are not at their trivial values."""
    family, own = VARIANTS[variant]
    common = {} if own.keys() >= _HEADS.keys() else _COMMON
    config = getattr(transformers, f"{family}Config")(
        **{k: v for k, v in {**common, **own, **changes}.items() if v is not None}
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        name = _MODELS.get(family, f"{family}ForCausalLM")
        model = getattr(transformers, name)(config).eval()
    # Gemma's norms multiply by 1 + weight.
    one = 0.0 if family.startswith("Gemma") else 1.0
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale, centre = (0.2, one) if "norm" in name or "ln_" in name else (0.15, 0.0)
        parameter.data.copy_(centre + scale * noise)
    return model


def tiny_tokenizer() -> Any:
    """Bytes below 128 are the tokens; the first three are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocab |= {chr(code): code for code in range(3, 128)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="</s>",
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub on this machine with a cache of its own; `offline()` takes it away."""
    with hub_here(tmp_path, monkeypatch) as handler:
        yield handler


@pytest.fixture(autouse=True)
def one_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no method is named, one way is tried, unless a test is about the contest of several."""
    if request.node.get_closest_marker("contest") is None:
        quick = Effort("One way.", (Parts("wifv", "AL-AM", "bias"),))
        monkeypatch.setitem(EFFORTS, "good", quick)


@pytest.fixture(autouse=True)
def no_words(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models write nothing for a report, each token of it a walk, unless a test is about that."""
    if request.node.get_closest_marker("samples") is None:
        monkeypatch.setattr("secateur.pipeline.continuing._WORK", 0)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a tiny random checkpoint with a tokenizer; give its folder."""

    def make(variant: str = "llama-gqa", **changes: Any) -> Path:
        folder = tmp_path / f"dense-{variant}-{len(list(tmp_path.iterdir()))}"
        dtype = changes.pop("dtype", torch.float32)
        tiny_model(variant, **changes).to(dtype).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return make


def baichuan_tensors(llama: Any) -> dict[str, torch.Tensor]:
    """The tensors of a llama as Baichuan's code names them: q, k and v in one, and old buffers."""
    held = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    for name in [name for name in held if name.endswith("q_proj.weight")]:
        parts = [held.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        held[name.replace("q_proj", "W_pack")] = torch.cat(parts)
        held[name.replace("q_proj.weight", "rotary_emb.inv_freq")] = torch.ones(4)
    return held


@pytest.fixture
def baichuan(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write a tiny llama, and the same model as a checkpoint of Baichuan-7B; give both folders.

    `changes` are made to Baichuan's config.json alone (None: the key goes).
    """

    def make(
        *, shards: int = 1, prefix: str = "", llama: Any = None, **changes: Any
    ) -> tuple[Path, Path]:
        stock, packed = tmp_path / "dense", tmp_path / "packed"
        llama = llama or tiny_model("llama-mha")
        llama.save_pretrained(stock)
        for folder in (stock, packed):
            tiny_tokenizer().save_pretrained(folder)
        held = {name.removeprefix(prefix): t for name, t in baichuan_tensors(llama).items()}
        write_shards(packed, held, shards)
        shutil.copyfile(stock / "generation_config.json", packed / "generation_config.json")
        config = {key: getattr(llama.config, key) for key in _BAICHUAN} | {
            "architectures": ["BaiChuanForCausalLM"],
            "auto_map": {
                "AutoConfig": "configuration_baichuan.BaiChuanConfig",
                "AutoModelForCausalLM": "modeling_baichuan.BaiChuanForCausalLM",
            },
            "model_type": "baichuan",
            "torch_dtype": str(llama.dtype).removeprefix("torch."),
            "transformers_version": "4.29.1",
        }
        config = {k: v for k, v in (config | changes).items() if v is not None}
        (packed / "config.json").write_text(json.dumps(config))
        return stock, packed

    return make


_BAICHUAN = (
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "rms_norm_eps",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)


def write_shards(folder: Path, held: Mapping[str, torch.Tensor], shards: int) -> None:
    """One file, or files with an index, called as a conversion of pytorch_model.bin calls them."""
    if shards == 1:
        save_file(dict(held), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = {
        name: f"pytorch_model-{1 + number % shards:05}-of-{shards:05}.safetensors"
        for number, name in enumerate(held)
    }
    for file in set(names.values()):
        part = {name: held[name] for name in held if names[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """About six thousand characters (and tokens) of text that is not all alike."""
    path = tmp_path / "calibration.txt"
    lines = [
        f"The {i} gardener cuts branch {i * 7 % 13} of tree {i * i % 29}, then rests."
        for i in range(110)
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def tokens() -> torch.Tensor:
    """Six windows of 24 tokens."""
    return torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(5))


REGISTRIES: tuple[dict[str, Any], ...] = (
    IMPORTANCE,
    FUSIONS,
    SEARCHES,
    REPAIRS,
    METHODS,
    EXPORTERS,
)


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """What a test registers is gone after it: help and errors of other tests list what there is."""
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, was in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(was)


@pytest.fixture(autouse=True)
def transformers_voice() -> Iterator[None]:
    """The command line silences transformers in this process; other tests get it back as it was."""
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def patient_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of progress because the machine that runs the tests is busy."""
    monkeypatch.setattr(Lines, "FIRST", 3600.0)


@pytest.fixture
def model(tiny_folder: Callable[..., Path]) -> Path:
    """The folder of a tiny model."""
    return tiny_folder()


@pytest.fixture
def calibrated(text_file: Path) -> list[str]:
    """Options of a quick run that asks for no more windows than the text has."""
    return ["--calibration", str(text_file), "--samples", "4", "--length", "16", "--align", "1"]


@pytest.fixture
def assert_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
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
        err = re.sub(r"^Note: the dense model .* is asked for on the hub\n", "", err)
        err = re.sub(
            r"^Note: .* cannot be kept in .*\n", "", err, flags=re.MULTILINE
        )  # a full disk
        lines = [line for line in err.splitlines() if line.strip()]
        assert 1 <= len(lines) <= 2, err
        assert "Traceback" not in err
        assert code == 130 or err.startswith("Error: "), err
        for word in says:
            assert re.search(word, err), f"{word!r} is not in: {err}"
        return err

    return check


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must succeed and have nothing to say beside its result; give that.

    Which texts a plan or a record made it read, it may say.
    """

    def check(*arguments: object) -> str:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        notes = [line for line in err.splitlines() if not re.match(r"Note: .* is read(,|$)", line)]
        assert (code, notes) == (0, [])
        return out

    return check


@contextmanager
def bound(*more: int) -> Iterator[None]:
    """Root, too, may only do what permissions say; `more` are other capabilities to be without."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root is bound on Linux alone")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version; this thread
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    before = sets[0]
    for one in (1, 2, *more):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        sets[0] &= ~(1 << one)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        libc.capset(header, sets)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below `folder`: files with their bytes, folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def cases(table: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    """A table as parameters, by name."""
    return [pytest.param(*case, id=name) for name, case in table.items()]


def shared(path: str) -> Path:
    """A file of the reference material beside the checkout, or skip the test."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"reference material is not here: shared/{path}")
    return found


@pytest.fixture
def pruned(tiny_folder: Any, text_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """A folder whose layers have different widths."""

    def make(variant: str = "llama-gqa", **settings: Any) -> Path:
        out = tmp_path / f"pruned-{variant}"
        given = {"ratio": 0.3, "align": 1, "samples": 6, "length": 16, "evaluate": "none"}
        folder = tiny_folder(variant)
        secateur.prune(folder, calibration=str(text_file), out=out, **{**given, **settings})
        return out

    return make


def linears(opened: Any) -> list[str]:
    """Paths of the linears that units have a part in."""
    axes = opened.structure.axes
    return list(dict.fromkeys(m.module for a in axes for m in a.members if m.parameter == "weight"))


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of a model in memory."""
    with torch.no_grad():
        return model(tokens).logits


def masked(model: Any, structure: Structure, plan: Plan) -> Any:
    """The other route: the dense model with zeros where removed units feed the consumers.

    A norm over the whole width of q or k goes over the units that stay.
    """
    mask(model, structure, plan)
    for axis in structure.axes:
        for member in axis.members:
            norm = model.get_submodule(member.module)
            if member.module.endswith("_norm") and norm.weight.dim() == 1:
                kept = member.blocks.indices(plan.kept_tensor(axis)).flatten()
                norm.forward = functools.partial(rms_norm_over, norm, kept)
    return model


def rms_norm_over(norm: Any, kept: Tensor, x: Tensor) -> Tensor:
    return norm.weight * x * (x[..., kept].square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def left_padded() -> dict[str, Tensor]:
    ids = torch.randint(3, 128, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[2, :1] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def cached(folder: Path, place: Path, name: str = "models--org--name") -> Path:
    """`folder` as the hub's cache keeps it: links to blobs."""
    blobs, snapshot = place / name / "blobs", place / name / "snapshots" / ("5" * 40)
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.rglob("*"))):
        if file.is_file():
            link = snapshot / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, blobs / str(number))
            link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    return snapshot


def flap_biases(opened: OpenModel, plan: Plan, tokens: Tensor) -> dict[str, Tensor]:
    """What the repair `bias` adds, by tensor name."""
    structure = opened.structure
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=4)
    statistics = collect(walk, structure.axes, ["input_mean"])
    return added_biases(structure, plan, "bias", opened.weights, statistics)
