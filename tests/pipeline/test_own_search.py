"""A search of one's own: what it is given, what it may give, and that it may ask the loss."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from conftest import REGISTRIES, tiny_model
from secateur.cli.main import run
from secateur.errors import SecateurError
from secateur.importance import IMPORTANCE
from secateur.methods import METHODS, use
from secateur.models import open_model
from secateur.pipeline.scoring import masks_of_parts, sums_of_parts
from secateur.search import SEARCHES, Loss, Removal, register_search, remove_lowest, search

DOCS = Path(__file__).parent.parent.parent / "docs"

HEAD = """
from secateur.search import register_search, remove_lowest
@register_search("my-search", paper="")
def my_search(removals, budget, loss, gradient):
    choice = remove_lowest(removals, budget, nearest=True)
    one = next(iter(removals))
"""
RANKED = """
@register_search("my-ranking", paper="")
def my_ranking(removals, budget):
    return remove_lowest(removals, budget, nearest=True)
"""


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example of the docs."""
    (text,) = re.findall(
        r"```python\n(.*?)```", (DOCS / "own-search.md").read_text(), flags=re.DOTALL
    )
    assert len(text.splitlines()) <= 40
    path = tmp_path / "my_search.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("method", ["flap", "magnitude", "hywia", "llm-pruner"])
def test_the_example_runs_is_deterministic_and_its_plan_needs_it_no_more(
    method: str, example: Path, model: Path, calibrated: list[str], tmp_path: Path
) -> None:
    common = [*calibrated, "--evaluate", "none", "--repair", "none"]
    own = ["--use", str(example), "--search", "my-search", "--method", method, "--ratio", "0.3"]
    for name in ("one", "two"):
        out = str(tmp_path / name)
        assert run(["prune", str(model), *own, *common, "--out", out]) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    for file in ("model.safetensors", "plan.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    assert json.loads((one / "plan.json").read_text())["settings"]["search"] == "my-search"
    SEARCHES.pop("my-search")
    out = str(tmp_path / "three")
    plan = str(one / "plan.json")
    assert run(["apply", plan, str(model), "--evaluate", "none", "--out", out]) == 0
    applied = tmp_path / "three"
    for file in ("model.safetensors", "plan.json"):
        assert (one / file).read_bytes() == (applied / file).read_bytes()
    assert 'search = "my-search"' in (applied / "run.toml").read_text()


def test_the_plan_of_an_own_score_needs_it_no_more(model: Path, tmp_path: Path) -> None:
    text = (DOCS / "own-score.md").read_text()
    file = tmp_path / "own.py"
    file.write_text(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0])
    own = {"use": str(file), "method": "my-score", "calibration": "embedded", "evaluate": "none"}
    plan = secateur.prune(model, dry_run=True, samples=4, length=16, **own).plan
    IMPORTANCE.pop("my-score")
    METHODS.pop("my-score")
    done = secateur.apply(plan, model, evaluate="none", out=tmp_path / "small")
    assert done.plan.keep == plan.keep
    assert (done.config.method, done.config.importance_name) == ("my-score", "my-score")
    with pytest.raises(SecateurError, match="Unknown method"):
        secateur.apply(plan, model, method="my-score", evaluate="none")


def test_it_is_compared(
    example: Path, model: Path, calibrated: list[str], tmp_path: Path, capsys: Any
) -> None:
    own = ["--use", str(example), "--search", "my-search", "--ratios", "0.3", "--json"]
    methods = ["compare", str(model), "--methods", "flap,magnitude,llm-pruner"]
    assert run([*methods, *own, *calibrated, "--out", str(tmp_path / "compared")]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["search"] for row in rows} == {"my-search"}
    assert len(rows) == 3


GRANULARITIES = [None, "kv_group,query_head", "layer", "attention_block,mlp_block", "channel,layer"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_loss_is_that_of_the_model_that_is_cut(
    granularity: str | None, tokens: torch.Tensor
) -> None:
    """Two routes: units masked in a pass, and the cut model run on the same windows."""
    told: list[list[float]] = []

    @register_search("my-search", paper="")
    def my_search(removals: Mapping[str, Removal], budget: float, loss: Loss) -> dict[str, int]:
        choice = remove_lowest(removals, budget, nearest=True)
        losses = loss([{}, choice])
        assert losses.dtype == torch.float64
        assert not len(loss([]))
        told.append(losses.tolist())
        return choice

    model = tiny_model()
    result = secateur.prune(
        model, search="my-search", method="magnitude", ratio=0.4, align=1, calibration=tokens,
        granularity=granularity, repair="none", evaluate="none",
    )  # fmt: skip
    asked = tokens[-1:]  # of six windows

    def loss_of(one: Any) -> float:
        with torch.no_grad():
            logits = one(asked).logits[:, :-1].flatten(0, 1)
        return float(torch.nn.functional.cross_entropy(logits, asked[:, 1:].flatten()))

    cut = loss_of(result.load())
    assert any(
        losses == pytest.approx([loss_of(model), cut], rel=1e-4) for losses in told
    )  # where units overlap the search is asked for several budgets
    assert cut != pytest.approx(loss_of(model), rel=1e-3)


@pytest.mark.parametrize("granularity", ["expert", "attention_block", "layer", "channel"])
def test_the_parts_that_are_masked_are_those_that_are_scored(granularity: str) -> None:
    whole = open_model(tiny_model("mixtral")).structures
    structure = whole.select([granularity]) if granularity != "channel" else whole.select()
    generator = torch.Generator().manual_seed(0)
    fine = {axis.name: torch.rand(axis.units, 1, generator=generator) for axis in whole.axes}
    coarse = sums_of_parts(structure, fine)
    for axis in structure.axes:
        for unit in range(axis.units):
            masks = masks_of_parts(structure, whole, [{}, {axis.name: (unit,)}])
            assert not any(mask[0].any() for mask in masks.values())
            lost = sum(float(fine[one.name][mask[1]].sum()) for one, mask in masks.items())
            assert lost == pytest.approx(float(coarse[axis.name][unit].sum()), rel=1e-5)


@pytest.mark.parametrize("method", ["llm-pruner", "saap"])
def test_no_gradient_sees_the_windows_that_ask_the_loss(method: str) -> None:
    """A search that asks, and one that does not on the other windows alone, agree."""
    tokens = torch.randint(3, 128, (16, 24), generator=torch.Generator().manual_seed(7))
    use_ranked = {"scale": "standardised", "ratio": 0.4, "align": 1, "repair": "none"}
    common: dict[str, Any] = {**use_ranked, "method": method, "evaluate": "none"}

    @register_search("my-search", paper="")
    def my_search(removals: Mapping[str, Removal], budget: float, loss: Loss) -> dict[str, int]:
        loss([{}])
        return remove_lowest(removals, budget, nearest=True)

    def plan(windows: torch.Tensor, name: str) -> Any:
        return secateur.prune(
            tiny_model(), calibration=windows, search=name, dry_run=True, **common
        ).plan.keep

    assert plan(tokens, "my-search") == plan(tokens[:14], "AL-AM") != plan(tokens, "AL-AM")


def test_a_search_of_all_that_is_given(tokens: torch.Tensor) -> None:
    seen: dict[str, Any] = {}

    @register_search("my-search", paper="")
    def my_search(
        axes: Sequence[Any],
        removals: Any,
        budget: float,
        loss: Any,
        generator: torch.Generator,
        scores: Any,
        by_sample: Any,
        ranked: Any,
        share: float,
        request: Any,
    ) -> dict[str, tuple[int, ...]]:
        seen.update(draw=float(torch.rand((), generator=generator)), share=share)
        values = {axis.name: -scores[axis.name].sum(dim=1) for axis in axes}
        assert {name: own.shape[1] for name, own in by_sample.items()} == {
            axis.name: axis.units for axis in axes
        }
        turned = ranked(values)  # the best go
        steps = remove_lowest(turned, request.budget, nearest=True)
        return {name: turned[name].units(count) for name, count in steps.items()}

    settings = {"method": "saap", "ratio": 0.4, "evaluate": "none", "repair": "none", "align": 1}
    first, again, other = (
        secateur.prune(
            tiny_model(), calibration=tokens, search=name, dry_run=True, seed=3, **settings
        ).plan
        for name in ("my-search", "my-search", "two_stage")
    )
    assert first.keep == again.keep != other.keep
    assert seen["share"] == pytest.approx(0.4)
    assert seen["draw"] == float(torch.rand((), generator=torch.Generator().manual_seed(3)))


BODIES: dict[str, tuple[str, str]] = {
    "raises": ("raise KeyError('x')", "fails: KeyError: 'x'"),
    "none": ("return None", "returned NoneType; expected a dict"),
    "axis": ("return {'layers.9.mlp': 1}", "'layers.9.mlp'; the axes .* layers.0.attention"),
    "more": ("return {one: 99}", "'layers.0.attention': 99 steps; expected 0 to 2"),
    "negative": ("return {one: -1}", "-1 steps; expected 0 to"),
    "float": ("return {one: 1.5}", "float; expected a number of steps"),
    "tensor": ("import torch; return {one: torch.tensor(0.5)}", "Tensor; expected a number"),
    "units": ("return {one: (0, 0)}", "units that are no steps"),
    "beyond": ("return {one: (77,)}", "units that are no steps"),
    "nested": ("return {one: ([1],)}", "units that are no steps"),
    "last": ("return {one: (0, 1, 2)}", "units that are no steps"),
    "nothing": ("return {}", r"steps of 0 parameters; the ratio asks for .*\n.*--ratio"),
    "loss of one": ("return loss(choice)", "asks the loss of str; expected a dict"),
    "loss of lists": ("return loss([[1]])", "asks the loss of list; expected a dict"),
    "gates": ("return gradient({one: 1}, 9, 0)", "gates that are not one for each unit"),
    "no gates": ("return gradient(None, 9, 0)", "gates that are not one for each unit"),
    "loss of more": ("return loss([{one: 99}])", "asks the loss of 'layers.0.attention': 99"),
}


@pytest.mark.parametrize("kind", list(BODIES))
def test_a_search_that_gives_no_choice_is_said(
    kind: str, model: Path, calibrated: list[str], tmp_path: Path, assert_refused: Any
) -> None:
    body, says = BODIES[kind]
    file = tmp_path / "own.py"
    file.write_text(HEAD + "    " + body)
    command = ["prune", model, "--use", file, "--search", "my-search", "--out", tmp_path / "out"]
    assert_refused(*command, *calibrated, "--evaluate", "none", says=["my-search", says])


FILES: dict[str, tuple[str, str]] = {
    "parameter": (HEAD.replace("loss", "los") + "    return choice", "Did you mean 'loss'"),
    "name": (HEAD.replace("my-search", "a,b") + "    return choice", "letters, digits"),
    "variable": (HEAD.replace("(removals,", "(*removals,") + "    return choice", "by name"),
    "fusion": ("from secateur.fusion import fusion\nfusion('a b', paper='')(print)", "a b"),
    "late": (HEAD + "    return choice\n1 / 0", "ZeroDivisionError"),
    "nothing": ("x = 1", "no score, fusion or search"),
}


@pytest.mark.parametrize("kind", list(FILES))
def test_a_file_that_fails_registers_nothing(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    text, says = FILES[kind]
    file.write_text("from secateur.methods import METHODS\n" + text)
    before = [dict(registry) for registry in REGISTRIES]
    with pytest.raises(SecateurError, match=says):
        use(file)
    assert before == [dict(registry) for registry in REGISTRIES]


def test_a_file_may_hold_a_score_a_fusion_and_a_search(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    score = (DOCS / "own-score.md").read_text()
    score, *_ = re.findall(r"```python\n(.*?)```", score, flags=re.DOTALL)
    fusion = """
from secateur.fusion import FUSIONS, fusion
@fusion("my-fusion", paper="")
def my_fusion(scopes):
    return FUSIONS["mean"].function(scopes)
@fusion("my-slip", paper="")
def my_slip(scopes):
    return [] if len(scopes) > 3 else scopes
"""
    file.write_text(score + fusion + HEAD + "    return choice" + RANKED)
    names = ("my-score", "my-fusion", "my-slip", "my-search", "my-ranking")
    assert use(file) == names
    common: dict[str, Any] = {
        "calibration": str(text_file), "samples": 8, "length": 16, "ratio": 0.4, "align": 1,
        "evaluate": "none", "repair": "none", "use": str(file), "search": "my-ranking",
    }  # fmt: skip
    own, mean = (
        secateur.prune(model, fusion=name, dry_run=True, **common).plan.keep
        for name in ("my-fusion", "mean")
    )
    assert own == mean
    with pytest.raises(
        SecateurError, match="'my-slip' returned list; expected a dict with a Fused"
    ):
        secateur.prune(model, fusion="my-slip", **common)


def test_where_there_is_no_loss_to_ask_the_cure_is_told(tokens: torch.Tensor) -> None:
    @register_search("my-search", paper="")
    def my_search(removals: Mapping[str, Removal], budget: float, loss: Loss) -> dict[str, int]:
        return remove_lowest(removals, budget, nearest=True)

    options: dict[str, Any] = {"search": "my-search", "method": "magnitude", "evaluate": "none"}
    with pytest.raises(SecateurError, match=r"'my-search' needs at least 2 .*\nType --samples"):
        secateur.prune(tiny_model(), calibration=tokens[:1], **options)
    with pytest.raises(SecateurError, match=r"hidden are in all layers\.\nType --search AL-AM"):
        secateur.prune(tiny_model(), calibration=tokens, granularity="hidden", **options)
    axes = open_model(tiny_model()).structure.axes
    scores = {axis.name: torch.rand(axis.units, 1) for axis in axes}
    with pytest.raises(SecateurError, match=r"no text to take it on\.\nType --calibration"):
        search("my-search", axes, scores, 1000.0)

    @register_search("my-search", paper="")
    def asking(loss: Loss) -> dict[str, int]:
        loss([{}])
        return {}

    nan = torch.tensor([torch.nan], dtype=torch.float64)
    with pytest.raises(SecateurError, match=r"NaN or infinite\.\nType --dtype"):
        search("my-search", axes, scores, 1000.0, loss=lambda choices: nan)


def test_rescoring_asks_no_search(tokens: torch.Tensor) -> None:
    """With --rescore the search is idle: no windows are kept for it."""

    @register_search("my-search", paper="")
    def my_search(loss: Loss) -> dict[str, int]:
        raise AssertionError

    options: dict[str, Any] = {"granularity": "layer", "rescore": True, "repair": "none"}
    plans = [
        secateur.prune(
            tiny_model(), calibration=tokens, importance="taylor-first", ratio=0.4, search=name,
            evaluate="none", dry_run=True, **options,
        ).plan.keep
        for name in ("my-search", "AL-AM")
    ]  # fmt: skip
    assert plans[0] == plans[1]
