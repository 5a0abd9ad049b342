"""Every search obeys every budget: what is written is counted anew, by files and by real caches."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import secateur
from conftest import tiny_model
from secateur.budgets import BYTES, PARAMETERS, TIME, Attention, Cache, Work, amount, windows_of
from secateur.budgets.amounts import spelled
from secateur.budgets.table import Line, work_of
from secateur.config import make_config, read_toml
from secateur.errors import SecateurError
from secateur.models import open_model
from secateur.pipeline import budgeting
from secateur.pipeline.choice import limits_of
from secateur.search import SEARCHES
from secateur.structure import Plan

CONTEXT, BATCH = 48, 4
GEMMA: dict[str, Any] = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
FAMILIES: dict[str, dict[str, Any]] = {"llama-gqa": {}, "gemma3": GEMMA, "gpt2": {}, "mixtral": {}}
# what a search by samples needs, and what experts do not go with
METHODS = {name: "saap" if "by_sample" in SEARCHES[name].needs else "flap" for name in SEARCHES}
QUICK = [*(("llama-gqa", name) for name in ("AL-AM", "UL-UM", "two_stage")), ("gemma3", "uniform")]
CASES: list[Any] = [
    (family, search)
    if (family, search) in QUICK
    else pytest.param(family, search, marks=pytest.mark.slow)
    for family in FAMILIES
    for search in SEARCHES
    if not (family == "mixtral" and SEARCHES[search].asks_divergence)
]


def settings(search: str, text_file: Path, **more: Any) -> dict[str, Any]:
    return {
        "method": METHODS[search],
        "search": search,
        "calibration": str(text_file),
        "samples": 4,
        "length": 16,
        "align": 1,
        "evaluate": "none",
        **more,
    }


def written(folder: Path) -> tuple[int, int]:
    """Values and bytes of the tensors in the files of a folder, by the files' own headers."""
    values = size = 0
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        size += len(data) - 8 - length
        for name, about in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                values += torch.Size(about["shape"]).numel()
    return values, size


def cached(model: Any, tokens: int, batch: int) -> int:
    """Bytes of the cache that transformers fills."""
    cache = DynamicCache(config=model.config)
    ids = torch.randint(3, 100, (batch, tokens))
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return sum(t.numel() * t.element_size() for one in cache.layers for t in (one.keys, one.values))


def steps_of(folder: Path, kind: str, search: str) -> float:
    """The largest step of a search, in what `kind` counts; of all layers where these are even."""
    opened = open_model(str(folder))
    config = make_config(
        model=str(folder), align=1, memory="1GB", at_context=CONTEXT, at_batch=BATCH
    )
    cache = budgeting.cache_of(opened, config)
    limits = limits_of(opened.structure, config)
    found = [
        (axis.cost * (4 if kind == "memory" else 1) + (cache.cost(axis) if kind == "memory" else 0))
        * limits.grid(axis)
        * axis.groups
        for axis in opened.structure.axes
    ]
    return sum(found) if not SEARCHES[search].across else max(found)


@pytest.mark.filterwarnings("ignore::secateur.errors.SecateurWarning")
@pytest.mark.parametrize(("family", "search"), CASES)
def test_what_is_written_is_what_was_asked(
    family: str, search: str, tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder(family, **FAMILIES[family])
    values, size = written(folder)
    whole = size + cached(secateur.load(str(folder)), CONTEXT, BATCH)
    asked = {"parameters": int(values * 0.8), "memory": int(whole * 0.75)}
    for kind, target in asked.items():
        out = tmp_path / kind
        more = {} if kind == "parameters" else {"at_context": CONTEXT, "at_batch": BATCH}
        result = secateur.prune(
            str(folder), out=out, **settings(search, text_file, **{kind: target}, **more)
        )
        left, bytes_left = written(out)
        found = left
        if kind == "memory":
            found = bytes_left + cached(secateur.load(str(out)), CONTEXT, BATCH)
        # a sliding layer keeps a token less than its window between two tokens
        slack = max(0.05 * target, steps_of(folder, kind, search))
        assert abs(found - target) <= slack, (kind, found, target)
        told = result.numbers["budget"]
        assert told["target"] == target
        assert abs(told["after"] - found) <= 0.02 * found
        assert result.plan.settings[kind] == str(target)
        assert result.plan.settings["ratio"] is None


def test_added_biases_are_counted(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    """To one channel, though a bias for each linear that reads weighs more than one."""
    folder = tiny_folder()
    asked = int(written(folder)[0] * 0.85)
    result = secateur.prune(
        str(folder),
        out=tmp_path / "o",
        **settings("AL-AM", text_file, parameters=asked, granularity="channel"),
    )
    assert any(name.endswith("bias") for name in result.form.weights.specs)  # type: ignore[union-attr]
    values, _ = written(tmp_path / "o")
    assert abs(values - asked) <= max(axis.cost for axis in result.structure.axes) / 2


def test_a_cache_makes_attention_go_first(
    tiny_folder: Callable[..., Path], text_file: Path
) -> None:
    """Per byte, a KV group with a large cache is worth less than the same group without."""
    folder = tiny_folder(max_position_embeddings=4096)
    gone = []
    for context in (1, 4096):
        result = secateur.prune(
            str(folder),
            **settings("global", text_file, parameters=None, at_context=context),
            memory=int(0.8 * _dense_bytes(folder, context)),
        )
        groups = [a for a in result.structure.axes if a.kind == "attention"]
        gone.append(sum(len(result.plan.removed(axis)) for axis in groups))
    assert gone[1] > gone[0]


def _dense_bytes(folder: Path, context: int) -> float:
    opened = open_model(str(folder))
    config = make_config(model=str(folder), memory="1GB", at_context=context)
    return budgeting.budget_of(opened, opened.structure, config).dense


@pytest.mark.parametrize("variant", ["gemma3", "mistral-gqa", "llama-mqa", "qwen2-sliding", "gpt2"])
@pytest.mark.parametrize("tokens", [4, 40])
def test_the_cache_is_that_of_transformers(
    variant: str, tokens: int, tiny_folder: Callable[..., Path]
) -> None:
    opened = open_model(str(tiny_folder(variant)))
    cache = Cache(
        opened.structures,
        opened.family.head_dim(opened.config),
        4,
        windows_of(opened.config),
        tokens,
        3,
    )
    model = opened.whole(torch.float32)
    full = cache.bytes(Plan({}, "", ""), opened.structure)
    # between two tokens, transformers keeps one less than a window
    windows = [w for w in cache.windows if w is not None and w <= tokens]
    groups = {a.layer: a.units for a in opened.structures.axes if a.granularity == "kv_group"}
    each = opened.family.head_dim(opened.config) * 2 * 4 * 3
    short = sum(
        groups[layer] * each
        for layer, window in enumerate(cache.windows)
        if window is not None and window <= tokens
    )
    assert len(windows) == 0 or short > 0
    assert cached(model, tokens, 3) == full - short


# --- overlapping granularities --------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["channel,layer", "kv_group,channel,mlp_block"])
@pytest.mark.parametrize("kind", ["parameters", "memory"])
def test_overlapping_units_count_once(
    kind: str, granularity: str, tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder(num_hidden_layers=5)
    values, size = written(folder)
    whole = {"parameters": values, "memory": size + cached(secateur.load(str(folder)), 32, 1)}
    asked = int(0.6 * whole[kind])
    more = {"at_context": 32} if kind == "memory" else {}
    out = tmp_path / "o"
    chosen = settings("AL-AM", text_file, granularity=granularity, repair="none", **more)
    result = secateur.prune(str(folder), out=out, **chosen, **{kind: asked})
    left, bytes_left = written(out)
    found = left if kind == "parameters" else bytes_left + cached(secateur.load(str(out)), 32, 1)
    opened = open_model(str(folder))
    budget = budgeting.budget_of(opened, result.structure, result.config)
    step = max(axis.cost for axis in budget.priced(result.structure.axes))
    assert abs(found - asked) <= max(0.05 * asked, step)


# --- time -----------------------------------------------------------------------------------------


def fake(work: Work, *_: Any) -> float:
    """A picosecond a weight, and one for each value of the cache that is read."""
    seconds = sum(out * into for out, into in work.linears) * 1e-12
    if work.attention is not None:
        about = work.attention
        seconds += 2 * about.groups * about.head_dim * about.tokens * work.batch * 1e-12
    return seconds


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same rule the whole model takes a picosecond a weight of a linear and of the cache."""

    def token_times(models: list[Any], device: Any, cache: Cache) -> list[float]:
        return [by_hand(model, cache.context, cache.batch) for model in models]

    monkeypatch.setattr(budgeting, "seconds_of", fake)
    monkeypatch.setattr(budgeting, "_token_times", token_times)


def by_hand(model: Any, tokens: int, batch: int) -> float:
    """Seconds: every weight of a linear once (an embedding is read if it is the head, too)."""
    config, head = model.config, model.get_output_embeddings().weight
    weights = sum(
        p.numel()
        for n, p in model.named_parameters()
        if p.dim() > 1 and (p is head or not any(part in n for part in ("embed_", "wte", "wpe")))
    )
    values = 0
    for index, window in enumerate(windows_of(config)):
        attention = next(
            m
            for n, m in model.named_modules()
            if n.endswith((f".{index}.self_attn", f".{index}.attn"))
        )
        width = getattr(attention, "head_dim", None)
        keys = getattr(attention, "k_proj", None)
        outputs = (
            keys.weight.shape[0] if keys is not None else attention.c_attn.weight.shape[1] // 3
        )
        assert width is None or outputs % width == 0
        values += 2 * outputs * min(tokens, window or tokens) * batch
    return (weights + values) * 1e-12


def test_a_record_does_not_fix_the_dtype_that_time_is_measured_in(
    tiny_folder: Callable[..., Path],
    text_file: Path,
    tmp_path: Path,
    fake_time: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, dtypes = tiny_folder(), {"time": "auto", "share": "float32"}
    for name, budget in (
        ("time", {"speedup": 1.25, "at_context": CONTEXT}),
        ("share", {"ratio": 0.2}),
    ):
        secateur.prune(str(folder), out=tmp_path / name, **settings("AL-AM", text_file, **budget))
        assert read_toml(tmp_path / name / "run.toml")["dtype"] == dtypes[name]
    # a plan that is applied asks no clock
    monkeypatch.setattr(budgeting, "seconds_of", lambda *_: 1 / 0)
    secateur.apply(tmp_path / "time", str(folder), out=tmp_path / "again", evaluate="none")
    assert read_toml(tmp_path / "again" / "run.toml")["dtype"] == "auto"


@pytest.mark.parametrize("family", ["llama-gqa", "gemma3", "gpt2"])
@pytest.mark.parametrize("search", ["AL-AM", "uniform", "UL-UM", "global", "two_stage"])
def test_time_is_that_of_the_table(
    family: str, search: str, tiny_folder: Callable[..., Path], text_file: Path, fake_time: None
) -> None:
    folder = tiny_folder(family, **FAMILIES[family])
    result = secateur.prune(
        str(folder),
        **settings(search, text_file, speedup=1.25, at_context=CONTEXT, at_batch=BATCH),
    )
    small = result.load()
    told = result.numbers["budget"]
    dense = by_hand(secateur.load(str(folder)), CONTEXT, BATCH)
    assert told["before"] == pytest.approx(dense * 1e3)
    assert told["target"] == pytest.approx(dense * 1e3 / 1.25)
    # the table is straight where the rule is, so that it tells every width
    after = by_hand(small, CONTEXT, BATCH) * 1e3
    assert told["after"] == pytest.approx(after)
    assert told["measured"]["speedup"] == pytest.approx(told["before"] / after)
    budget = budgeting.budget_of(open_model(str(folder)), result.structure, result.config)
    steps = [axis.cost * axis.groups for axis in budget.priced(result.structure.axes)]
    step = sum(steps) if not SEARCHES[search].across else max(steps)
    assert abs(after - told["target"]) <= max(0.05 * told["target"], step / 1e9)


def test_experts_take_time_as_they_are_routed(tiny_folder: Callable[..., Path]) -> None:
    opened = open_model(str(tiny_folder("mixtral")))
    axis = next(a for a in opened.structures.axes if a.granularity == "expert_channel")
    for batch, times in ((1, 2), (8, 4)):  # two experts a token, four in all
        config = make_config(model="m", memory="1GB", at_batch=batch)
        cache = budgeting.cache_of(opened, config)
        work = work_of(axis, axis.units // 2, opened.weights.specs, cache, 2)
        width = axis.units // axis.groups // 2
        assert sorted(set(work.linears)) == sorted({(2 * width, 48), (48, width)})
        assert len(work.linears) == 2 * times


def test_whole_layers_take_their_part_of_the_rest(
    tiny_folder: Callable[..., Path], text_file: Path, fake_time: None
) -> None:
    folder = tiny_folder(num_hidden_layers=6)
    result = secateur.prune(
        str(folder),
        **settings("AL-AM", text_file, speedup=1.4, granularity="layer", repair="none"),
    )
    told = result.numbers["budget"]
    assert told["after"] == pytest.approx(by_hand(result.load(), 64, 1) * 1e3)


def test_a_line_never_falls_and_meets_what_was_measured() -> None:
    line = Line.of([2, 4, 8], [1.0, 3.0, 7.0])
    assert [line.at(n) for n in (0, 2, 3, 4, 6, 8)] == [0, 1, 2, 3, 5, 7]
    noisy = Line.of([1, 2, 3, 4], [1.0, 3.0, 2.0, 4.0])
    assert list(noisy.times) == sorted(noisy.times)
    assert noisy.times[1:3] == (2.5, 2.5)


def test_real_times_are_those_of_work() -> None:
    """Sixteen times the weights take longer; nothing more is sure of a machine."""
    cpu = torch.device("cpu")
    few, many = (Work(((n, n),), 1, Attention(4, 2, 8, 16)) for n in (256, 1024))
    from secateur.budgets import work_seconds

    assert 0 < work_seconds(few, cpu, torch.float32) < work_seconds(many, cpu, torch.float32)


@pytest.mark.parametrize("variant", ["llama-gqa", "gemma3", "gpt2", "bloom"])
def test_a_token_of_a_real_model_is_timed_at_its_context(variant: str) -> None:
    from secateur.budgets.timing import filled_cache, token_seconds

    model = tiny_model(variant)
    assert all(seconds > 0 for seconds in token_seconds([model, model], 40, 2))
    cache = filled_cache(model, 40, 2)
    assert cache.get_seq_length() == 40 or variant == "gemma3"


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [
        ("5.4B", PARAMETERS, 5.4e9),
        ("108m", PARAMETERS, 108e6),
        ("950k", PARAMETERS, 950e3),
        ("1_000_000", PARAMETERS, 1e6),
        ("8GB", BYTES, 8e9),
        ("7.5 GiB", BYTES, 7.5 * 2**30),
        ("600MiB", BYTES, 600 * 2**20),
        ("25ms", TIME, 25e9),
        ("0.5s", TIME, 5e11),
    ],
)
def test_amounts(text: str, units: dict[str, float], value: float) -> None:
    assert amount(text, "--x", units, "1") == pytest.approx(value)


@pytest.mark.parametrize("value", [1, 999, 1234, 53_376, 5_432_100_000, 8e12])
def test_what_is_spelled_is_read_again_and_never_less(value: float) -> None:
    for units, names in ((PARAMETERS, "B M k"), (BYTES, "GB MB kB B")):
        again = amount(spelled(value, units, names), "--x", units, "1")
        assert value <= again <= value * 1.002


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ratio", "0.2", "--memory", "8GB"], ["--memory and --ratio both", "Give one of"]),
        (["--memory", "1GB", "--speedup", "1.3"], ["both say", "--latency"]),
        (["--memory", "lots"], ["--memory lots is no amount", "8GB"]),
        (["--memory", "8XB"], ["no amount", "7.5GiB"]),
        (["--parameters", "-3"], ["--parameters -3 is no amount", "5.4B"]),
        (["--latency", "25"], ["--latency 25 is no amount", "25ms"]),
        (["--speedup", "0.9"], ["speedup", "greater than 1"]),
        (
            ["--parameters", "5.4B"],
            ["asks for nothing", "62,736 parameters", "--parameters 50.19k"],
        ),
        (["--parameters", "9k"], ["out of reach", "stay at least", r"Type --parameters \d"]),
        (["--memory", "9kB"], ["out of reach", "stay at least", r"Type --memory \d.*B"]),
        (["--memory", "100kB", "--at-context", "65"], ["--at-context 65", "64 tokens at most"]),
        (["--speedup", "1.1", "--granularity", "hidden"], ["no time of hidden units", "--memory"]),
    ],
)
def test_what_cannot_be_is_told_before_any_work(
    options: list[str],
    says: list[str],
    model: Path,
    calibrated: list[str],
    assert_refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    assert_refused("prune", model, *calibrated, *options, "--out", tmp_path / "o", says=says)


def test_a_speedup_out_of_reach_says_what_can_be(
    tiny_folder: Callable[..., Path], text_file: Path, fake_time: None
) -> None:
    folder = tiny_folder()
    with pytest.raises(SecateurError, match=r"out of reach(.|\n)*Type --speedup \d") as refused:
        secateur.prune(str(folder), **settings("AL-AM", text_file, speedup=50.0))
    reached = float(str(refused.value).split("--speedup ")[-1].split(",")[0])
    secateur.prune(str(folder), dry_run=True, **settings("AL-AM", text_file, speedup=reached))


@pytest.mark.parametrize("name", ["parameters", "memory", "speedup", "latency", "at_batch"])
def test_comparing_takes_ratios_alone(name: str, model: Path) -> None:
    value: Any = {"speedup": 1.2, "at_batch": 2}.get(name, "1MB")
    with pytest.raises(SecateurError, match="comparing takes --ratios"):
        secateur.compare(str(model), methods="flap", ratios=[0.2], **{name: value})


def test_a_record_is_repeated_and_an_option_displaces_its_budget(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    from secateur.cli.main import run

    folder, first, again, other = tiny_folder(), *(tmp_path / name for name in "abc")
    secateur.prune(str(folder), out=first, **settings("AL-AM", text_file, parameters="50k"))
    told = ["prune", "--config", str(first / "run.toml")]
    assert run([*told, "--out", str(again)]) == 0
    assert (first / "plan.json").read_text() == (again / "plan.json").read_text()
    assert run([*told, "--ratio", "0.1", "--out", str(other)]) == 0
    assert written(other)[0] > written(again)[0]
    assert run(["apply", str(first), str(folder), "--out", str(tmp_path / "d")]) == 0
    assert written(tmp_path / "d") == written(first)


def test_settings_that_no_budget_asks_for_are_told(
    tiny_folder: Callable[..., Path], text_file: Path
) -> None:
    folder = str(tiny_folder())
    result = secateur.prune(folder, **settings("AL-AM", text_file, at_batch=2))
    assert any("--at-batch changes nothing" in note for note in result.notes)
    chosen = settings("AL-AM", text_file, parameters="55k", of="model")
    assert any("--of changes nothing" in note for note in secateur.prune(folder, **chosen).notes)


def test_stock_plans_take_budgets(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder(num_attention_heads=6, num_key_value_heads=6, head_dim=8)
    asked = int(0.8 * written(folder)[0])
    chosen = settings("uniform", text_file, parameters=asked, stock=True, repair="none")
    result = secateur.prune(str(folder), out=tmp_path / "o", **chosen)
    assert result.form is not None
    assert result.form.stock
    assert abs(written(tmp_path / "o")[0] - asked) <= max(0.05 * asked, 3 * 3 * 48)
