"""What passes find is kept: nobody looks twice, and a run goes on where it was cut short."""

import filecmp
import gc
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.checkpoint import Kept, Store
from secateur.cli.main import run
from secateur.config import make_config
from secateur.data.sources import embedded_folder
from secateur.models import StreamedModel
from secateur.pipeline import calibration_windows, kept_units, scores
from secateur.stats import Walk, collect

CutShort = Callable[..., AbstractContextManager[None]]

SHORT = {
    "samples": 8, "length": 16, "evaluate_tokens": 100, "align": 1, "ratio": 0.3, "prompts": 0,
}  # fmt: skip
# Every kind of pass is in one of these.
RUNS: dict[str, dict[str, Any]] = {
    "flap": {"method": "flap"},
    "hywia": {"method": "hywia", "layers": "1-2"},
    "llm-pruner": {"method": "llm-pruner", "repair": "mask-tuning"},
    "depth": {"granularity": "layer", "repair": "refit", "ratio": 0.4},
    "one-shot": {
        "method": "magnitude",
        "repair": "refit",
        "target": "one_shot",
        "layers": "1",
        "ratio": 0.2,
    },
}


@pytest.fixture
def layers_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that were given weights, in turn."""
    seen: list[int] = []
    start = StreamedModel.layer

    def noted(self: StreamedModel, index: int) -> Any:
        seen.append(index)
        return start(self, index)

    monkeypatch.setattr(StreamedModel, "layer", noted)
    return seen


@pytest.fixture
def cut_short(monkeypatch: pytest.MonkeyPatch) -> CutShort:
    """While entered, the run ends right after so many layers in all were done."""
    keep = Kept.layer
    left = [-1]

    def layer(self: Kept, *args: Any) -> None:
        keep(self, *args)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "layer", layer)
    monkeypatch.setattr("secateur.pipeline.keeping.WORTH", 0.0)

    @contextmanager
    def after(count: int, *, match: str | None = None, caught: bool = False) -> Iterator[None]:
        left[0] = count
        with nullcontext() if caught else pytest.raises(KeyboardInterrupt, match=match):
            yield
        left[0] = -1

    return after


def same(one: Path, other: Path) -> bool:
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in other.iterdir())
    return filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])


@pytest.fixture
def texts(text_file: Path) -> dict[str, Any]:
    return {"calibration": str(text_file), **SHORT}


@pytest.mark.parametrize(
    "name",
    ["hywia", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "hywia")],
)
def test_a_run_goes_on_from_the_last_layer_to_the_same_bytes(
    name: str,
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    layers_run: list[int],
    cut_short: CutShort,
    request: pytest.FixtureRequest,
) -> None:
    model, settings = tiny_folder(), {**texts, **RUNS[name]}
    whole, out = tmp_path / "whole", tmp_path / "out" / "small"
    secateur.prune(model, out=whole, **settings)
    count = len(layers_run)
    for done in range(1, count, max(1, count // 5)):
        with cut_short(done, match=r"so far is in .small.store beside"):
            secateur.prune(model, out=out, **settings)
        layers_run.clear()
        result = secateur.prune(model, out=out, **settings)
        assert len(layers_run) == count - done
        assert same(whole, out)
        assert [entry.name for entry in out.parent.iterdir()] == ["small"]
        assert all("beside --out" not in note for note in result.notes)
        shutil.rmtree(out)


def test_it_says_that_it_goes_on(
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    cut_short: CutShort,
) -> None:
    model = tiny_folder()
    with cut_short(2):
        secateur.prune(model, out=tmp_path / "small", **texts)
    notes = secateur.prune(model, out=tmp_path / "small", **texts).notes
    assert "statistics: going on after layer 1, where an earlier run was cut short" in notes


def test_fresh_begins_anew(
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    layers_run: list[int],
    cut_short: CutShort,
) -> None:
    model = tiny_folder()
    secateur.prune(model, out=tmp_path / "first", store=tmp_path / "store", **texts)
    count = len(layers_run)
    layers_run.clear()
    secateur.prune(model, out=tmp_path / "second", store=tmp_path / "store", **texts)
    assert not layers_run
    secateur.prune(model, out=tmp_path / "third", store=tmp_path / "store", fresh=True, **texts)
    assert len(layers_run) == count
    assert same(tmp_path / "first", tmp_path / "third")


@pytest.mark.parametrize(
    ("first", "then", "looked"),
    [
        ({"method": "flap"}, {"ratio": 0.5}, "perplexity"),
        ({"method": "flap"}, {"search": "UL-UM"}, "perplexity"),
        ({"method": "flap"}, {"repair": "none"}, "perplexity"),
        ({"method": "flap"}, {"method": "wanda-sp"}, "statistics perplexity"),
        ({"method": "wanda-sp", "repair": "bias"}, {"method": "flap"}, "perplexity"),
        ({"method": "saap"}, {"search": "joint"}, "perplexity"),
        ({"method": "saap"}, {"fusion": "mean", "layers": "1-2"}, "perplexity"),
        ({"method": "hywia"}, {"repair": "none"}, "perplexity"),
        ({"method": "hywia"}, {"ratio": 0.2}, "repair perplexity"),
        ({"method": "flap"}, {"seed": 1}, "statistics perplexity"),
        ({"method": "flap", "layers": "1-2"}, {"layers": "0-2"}, "statistics perplexity"),
        (
            {"method": "saap", "layers": "1-2"},
            {"layers": "0-2"},
            "layer-inputs gradients perplexity",
        ),
        ({"method": "flap"}, {"batch": 3}, "statistics perplexity"),
    ],
)
def test_what_did_not_change_is_not_looked_for_again(
    first: dict[str, Any],
    then: dict[str, Any],
    looked: str,
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run after another one walks the layers for what is new alone, and gives what it gives."""
    model, store = tiny_folder(), tmp_path / "store"
    walked: set[str] = set()
    keep = Kept.layer

    def noted(self: Kept, *args: Any) -> None:
        walked.add(self.folder.name.rpartition("-")[0].rpartition("-")[0] if self.folder else "?")
        keep(self, *args)

    secateur.prune(model, out=tmp_path / "a", store=store, **{**texts, **first})
    monkeypatch.setattr(Kept, "layer", noted)
    secateur.prune(model, out=tmp_path / "b", store=store, **{**texts, **first, **then})
    assert walked == set(looked.split())
    secateur.prune(model, out=tmp_path / "c", **{**texts, **first, **then})
    assert same(tmp_path / "b", tmp_path / "c")


def test_recovery_and_comparison_go_on_too(
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    layers_run: list[int],
    cut_short: CutShort,
) -> None:
    model = tiny_folder()
    secateur.prune(model, out=tmp_path / "small", **texts)
    data = {"data": texts["calibration"], "samples": 24, "length": 16, "evaluate_tokens": 100}
    data["prompts"] = 0
    training: dict[str, Any] = {**data, "steps": 2, "teacher": str(model)}
    layers_run.clear()
    secateur.recover(tmp_path / "small", out=tmp_path / "whole", **training)
    count = len(layers_run)
    for done in (2, count // 2, count - 1):
        with cut_short(done):
            secateur.recover(tmp_path / "small", out=tmp_path / "out" / "better", **training)
        layers_run.clear()
        secateur.recover(tmp_path / "small", out=tmp_path / "out" / "better", **training)
        assert len(layers_run) == count - done
        assert same(tmp_path / "whole", tmp_path / "out" / "better")
        assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["better"]
        shutil.rmtree(tmp_path / "out")


@pytest.mark.samples
def test_what_a_model_wrote_is_not_written_again(tmp_path: Path, layers_run: list[int]) -> None:
    """Of two runs with one store the second writes with its own model alone; a third with none."""
    settings: dict[str, Any] = {
        "calibration": "embedded", "samples": 8, "length": 16, "evaluate": "none", "prompts": 1,
        "store": tmp_path / "store",
    }  # fmt: skip
    model, layers = embedded_folder(), 6
    tokens = 32
    secateur.prune(model, out=tmp_path / "a", method="flap", ratio=0.2, **settings)
    for ratio, out, writes in ((0.3, "b", 1), (0.3, "c", 0)):
        layers_run.clear()
        secateur.prune(model, out=tmp_path / out, method="flap", ratio=ratio, **settings)
        assert len(layers_run) == writes * layers * tokens
    assert same(tmp_path / "b", tmp_path / "c")
    assert json.loads((tmp_path / "b" / "report.json").read_text())["samples"]


def test_a_comparison_goes_on(
    text_file: Path,
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    layers_run: list[int],
    cut_short: CutShort,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["compare", str(tiny_folder()), "--methods", "flap,saap", "--ratios", "0.2,0.3"]
    command += ["--calibration", str(text_file), "--samples", "8", "--length", "16"]
    command += ["--evaluate-tokens", "100", "--align", "1"]
    assert run([*command, "--out", str(tmp_path / "whole")]) == 0
    count = len(layers_run)
    for done in (2, count // 2, count - 1):
        out = tmp_path / f"out-{done}"
        with cut_short(done, caught=True):
            assert run([*command, "--out", str(out)]) == 130
        assert f".out-{done}.store beside --out" in capsys.readouterr().err
        layers_run.clear()
        assert run([*command, "--out", str(out)]) == 0
        assert len(layers_run) == count - done
        assert rows(out) == rows(tmp_path / "whole")
        assert not list(tmp_path.glob(".out*"))


def rows(folder: Path) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = json.loads((folder / "comparison.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read]


@pytest.mark.parametrize("what", ["states", "layer-0", "about", "input-0"])
def test_what_a_power_cut_left_is_not_believed(
    what: str,
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    layers_run: list[int],
    cut_short: CutShort,
) -> None:
    model, store = tiny_folder(), tmp_path / "store"
    settings = {**texts, "method": "llm-pruner", "layers": "0-2"}
    secateur.prune(model, out=tmp_path / "whole", **settings)
    with cut_short(5):  # three up, two down
        secateur.prune(model, out=tmp_path / "small", store=store, **settings)
    for file in store.glob(f"*/{what}*"):
        file.write_bytes(file.read_bytes()[:-64] + bytes(64))
    how: dict[str, Any] = {"out": tmp_path / "small", "store": store, **settings}
    if what == "input-0":
        with pytest.raises(secateur.SecateurError, match=r"is damaged.\nAdd --fresh"):
            secateur.prune(model, **how)
        how["fresh"] = True
    secateur.prune(model, **how)
    assert same(tmp_path / "whole", tmp_path / "small")


def test_another_model_or_another_text_shares_nothing(
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    layers_run: list[int],
) -> None:
    store = tmp_path / "store"
    secateur.prune(tiny_folder(), out=tmp_path / "a", store=store, **texts)
    count = len(layers_run)
    other = tiny_folder("llama-mha")
    layers_run.clear()
    secateur.prune(other, out=tmp_path / "b", store=store, **texts)
    assert len(layers_run) == count


def test_a_live_model_is_known_by_its_values(
    texts: dict[str, Any], tmp_path: Path, layers_run: list[int]
) -> None:
    from conftest import tiny_model

    model = tiny_model()
    tokens = torch.randint(3, 128, (8, 16), generator=torch.Generator().manual_seed(0))
    settings = {**texts, "calibration": tokens, "evaluate": "none", "store": tmp_path / "store"}
    secateur.prune(model, **settings)
    count = len(layers_run)
    secateur.prune(model, **settings)
    assert len(layers_run) == count
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[7, 3] += 1e-3  # no fingerprint of heads sees it
    secateur.prune(model, **settings)
    assert len(layers_run) == 2 * count


def test_a_store_is_bounded_listed_and_cleaned(
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, place = tiny_folder(), tmp_path / "store"
    secateur.prune(model, out=tmp_path / "small", store=place, **texts)
    (place / "mine.txt").write_text("not a pass")
    capsys.readouterr()
    assert run(["store", str(place)]) == 0
    said = capsys.readouterr().out
    assert "statistics" in said
    assert "3 passes" in said
    assert run(["store", str(place), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {one["kind"] for one in listed["passes"]} == {"statistics", "perplexity"}
    with Store(place, gib=listed["bytes"] / 2 / 2**30) as store:
        store.passes()
    assert 0 < len(Store(place).passes()) < 3
    with Store(place) as held:
        first = held.passes()[0]
        held.kept(first.kind, first.about["walk"], first.about["asked"])
        assert run(["store", str(place), "--clean"]) == 0
        assert "1 are held by a run" in capsys.readouterr().out
    assert run(["store", str(place), "--clean", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 0
    assert [entry.name for entry in place.iterdir()] == ["mine.txt"]


def test_a_pass_that_another_run_makes_is_made_in_memory(
    texts: dict[str, Any], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model, place = tiny_folder(), tmp_path / "store"
    secateur.prune(model, out=tmp_path / "whole", store=place, **texts)
    for one in (*place.glob("*/end*"), *place.glob("*/layer*")):
        one.unlink()
    with Store(place) as other:
        for one in other.passes():
            other.kept(one.kind, one.about["walk"], one.about["asked"])
        result = secateur.prune(model, out=tmp_path / "small", store=place, **texts)
    assert same(tmp_path / "whole", tmp_path / "small")
    assert any("another run makes the same pass" in note for note in result.notes)


def test_a_store_that_cannot_be_is_refused(
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    assert_refused: Callable[..., str],
    text_file: Path,
) -> None:
    model, out = tiny_folder(), tmp_path / "small"
    options = ["--calibration", text_file, "--samples", "2", "--length", "16", "--out", out]
    says = ["lies in --out", "Choose another --store"]
    assert_refused("prune", model, *options, "--store", out / "store", says=says)
    says = ["Cannot keep passes in", "Choose another --store"]
    assert_refused("prune", model, *options, "--store", text_file, says=says)
    assert_refused("store", tmp_path / "none", says=["No such store", "--store DIR"])


def test_states_stay_in_the_store_and_nothing_is_left_of_them(
    texts: dict[str, Any], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """A whole pass has what was found, and no hidden states."""
    store = tmp_path / "store"
    settings = {**texts, "method": "hywia"}
    secateur.prune(tiny_folder(), out=tmp_path / "small", store=store, **settings)
    names = {re.sub(r"\d+", "N", file.name) for file in store.glob("*/*")}
    assert names == {"about.json", "layer-N.safetensors", "end.safetensors"}
    kinds = {one.kind for one in Store(store).passes()}
    assert kinds == {"gradients", "probes", "repair", "perplexity"}


GRAM_SCORE = """
from secateur.importance import importance


@importance("energy", paper="")
def energy(weight, input_gram):
    flat = weight.flatten(0, 1)
    return (flat * (input_gram @ flat)).sum(dim=1).view(weight.shape[:2])
"""


def live_bytes() -> int:
    """Of all tensors, memory that several share counted once."""
    gc.collect()
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if type(one) in (torch.Tensor, torch.nn.Parameter) and not one.is_meta
    }
    return sum(storages.values())


@pytest.mark.parametrize("kind", ["statistics", pytest.param("repair", marks=pytest.mark.slow)])
def test_what_a_layer_needs_goes_with_it(
    kind: str,
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gram matrices and fitted weights of seven layers never live beside those of the eighth."""
    (tmp_path / "score.py").write_text(GRAM_SCORE)
    model = tiny_folder(num_hidden_layers=8, intermediate_size=256)
    live: list[int] = []
    keep = Kept.layer

    def noted(self: Kept, *args: Any) -> None:
        keep(self, *args)
        if self.folder is not None and self.folder.name.startswith(kind):
            live.append(live_bytes())

    monkeypatch.setattr(Kept, "layer", noted)
    secateur.prune(
        model,
        out=tmp_path / "small",
        **{**texts, "use": str(tmp_path / "score.py"), "method": "energy", "repair": "refit"},
    )
    assert len(live) == 8
    gram, fitted = 4 * 256**2, 4 * 48 * 256
    assert max(live) - live[1] < min(gram, fitted) // 2


def test_a_score_made_of_gram_matrices_is_that_of_all_of_them(
    texts: dict[str, Any], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Two routes: made in the pass, and made of statistics that were all collected."""
    (tmp_path / "score.py").write_text(GRAM_SCORE)
    model, own = tiny_folder(), str(tmp_path / "score.py")
    settings = {**texts, "use": own, "method": "energy", "evaluate": "none"}
    plan = secateur.prune(model, **settings).plan
    opened = secateur.open_model(model)
    tokens = calibration_windows(opened, make_config(model=str(model), **texts)).ids
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=8)
    statistics = collect(walk, opened.structure.axes, ["input_gram"])
    found = scores(opened.structure.axes, "energy", opened.weights, statistics, seed=0)
    config = make_config(model=str(model), **{k: v for k, v in settings.items() if k != "use"})
    assert kept_units(opened.structure, found, config) == dict(plan.keep)


def test_a_run_that_fails_leaves_what_an_earlier_one_kept(
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    layers_run: list[int],
    cut_short: CutShort,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, out = tiny_folder(), tmp_path / "small"
    secateur.prune(model, out=tmp_path / "whole", **texts)
    count = len(layers_run)
    with cut_short(4):
        secateur.prune(model, out=out, **texts)
    monkeypatch.setattr("secateur.pipeline.keeping.WORTH", 5.0)
    with pytest.raises(secateur.SecateurError):
        secateur.prune(model, out=out, **{**texts, "calibration": "no/such.txt"})
    layers_run.clear()
    secateur.prune(model, out=out, **texts)
    assert len(layers_run) == count - 4
    assert same(tmp_path / "whole", out)


def test_a_store_in_hand_goes_on_after_an_interrupt(
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    cut_short: CutShort,
) -> None:
    """As in a notebook; where nothing can be written, too."""
    model = tiny_folder()
    secateur.prune(model, out=tmp_path / "whole", **texts)
    (tmp_path / "file").write_text("no folder")
    for number, place in enumerate((tmp_path / "store", tmp_path / "file" / "store")):
        with Store(place) as store:
            with cut_short(2):
                secateur.prune(model, out=tmp_path / f"small-{number}", store=store, **texts)
            secateur.prune(model, out=tmp_path / f"small-{number}", store=store, **texts)
        assert same(tmp_path / "whole", tmp_path / f"small-{number}")


def test_streams_that_a_repair_looked_ahead_at_are_checked_and_go(
    texts: dict[str, Any],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    cut_short: CutShort,
) -> None:
    model, store = tiny_folder(), tmp_path / "store"
    settings = {**texts, **RUNS["depth"], "store": store}
    with cut_short(5):
        secateur.prune(model, out=tmp_path / "small", **settings)
    kept = list(store.glob("*/after-*"))
    assert kept
    for states in kept:
        states.write_bytes(states.read_bytes()[:-64] + bytes(64))
        with pytest.raises(secateur.SecateurError, match="is damaged"):
            secateur.prune(model, out=tmp_path / "small", **settings)
    secateur.prune(model, out=tmp_path / "small", fresh=True, **settings)
    assert not list(store.glob("*/after-*"))
    assert {one.kind for one in Store(store).passes()} == {"statistics", "repair", "perplexity"}


def test_what_one_run_dropped_the_next_with_the_same_store_makes_anew(
    texts: dict[str, Any], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The inputs of layers, which the gradients of other terms need again."""
    model, settings = tiny_folder(), {**texts, "method": "saap"}
    with Store(tmp_path / "store") as store:
        secateur.prune(model, out=tmp_path / "first", store=store, **settings)
        secateur.prune(model, out=tmp_path / "small", store=store, fine="second", **settings)
    secateur.prune(model, out=tmp_path / "whole", fine="second", **settings)
    assert same(tmp_path / "whole", tmp_path / "small")
    assert "layer inputs" not in {one.kind for one in Store(tmp_path / "store").passes()}


def test_an_empty_folder_of_passes_that_a_kill_left_goes(
    texts: dict[str, Any], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "out" / ".small.store").mkdir(parents=True)
    secateur.prune(tiny_folder(), out=tmp_path / "out" / "small", **texts)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["small"]
