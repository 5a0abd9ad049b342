"""report.html is a function of report.json: whole, escaped, without places; and stands offline."""

import errno
import json
import re
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import FOUND, Browser, browser

import secateur
from conftest import tiny_model
from secateur.errors import SecateurError
from secateur.models import open_model
from secateur.pipeline import Comparison, redraw
from secateur.pipeline.reporting import scores_of, stability_of
from secateur.report import Average, Report, Row, page, read_report
from secateur.report.comparing import winner
from secateur.report.facts import facts, headline, lost_most, who_won
from secateur.report.page import html
from secateur.report.sections import sections
from secateur.report.words import words
from secateur.structure import Plan

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\u2028\x1b[31m&"
PLACE = {"layer": 0, "kind": "channel"}
SEVEN = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
CUT = [
    {**PLACE, "layer": n, "kept": 4, "of": 8, "units_kept": 4, "units": 8, "parameters": 80,
     "removed": 10 * n}
    for n in range(4)
]  # fmt: skip
PERPLEXITY = [{"window": 16, "tokens": 90, "before": 2.0, "after": 3.0}]
FULL: dict[str, Any] = {
    "schema": 1, "kind": "recover", "model": EVIL, "class": EVIL, "why_not_stock": EVIL,
    "parameters": {"before": 100, "after": 80}, "linears": {"before": 90, "after": 70},
    "bytes": {"before": 400, "after": 320}, "perplexity": PERPLEXITY, "evaluated_on": EVIL,
    "speed": [{"before": 2.0, "after": 1.0, "context": 8, "batch": 1, "measured": True}],
    "method": {"name": EVIL, "importance": "wifv", "search": "global", "repair": "refit"},
    "contest": [
        {"importance": EVIL, "search": "global", "repair": "refit", "windows": n, "divergence": d}
        for n, d in ((2, 0.5), (8, 0.4))
    ],
    "cut": CUT,
    "importance": [{**PLACE, "quantiles": SEVEN, "edges": [0.1, 0.3, 0.7], "stay": [1, 3],
                    "go": [4, 0]}],
    "blend": [{**PLACE, "coarse": 0.3, "fine": 0.7}],
    "stability": [{**PLACE, "quantiles": SEVEN}],
    "repair": [{**PLACE, "module": EVIL, "target": "residual", "damping": None, "condition": 9.0,
                "before": 0.4, "after": 0.2, "fitted": True}],
    "recovery": {
        "recipe": "distil", "trained": EVIL, "trained_parameters": 9, "source": EVIL,
        "examples": 4, "held_out": 1, "tokens": 99, "sha256": "ab", "steps": 4, "best_step": 2,
        "checks": [{"step": 0, "held_out": 1.5}, {"step": 2, "held_out": 1.2, "trained": 1.1}],
        "perplexity": PERPLEXITY, "bytes": {"before": 320, "after": 320},
        "settings": {"recipe": EVIL},
    },
    "samples": [{"prompt": EVIL, "before": EVIL, "after": EVIL}],
    "seed": 7,
    "calibration": {"text": EVIL, "windows": 8, "length": 16, "sha256": "cd"},
    "settings": {"method": EVIL}, "versions": {"secateur": "1"},
}  # fmt: skip
ROW: dict[str, Any] = {
    "method": "flap", "repair": "bias", "ratio": 0.2, "removed": 0.2, "parameters": 80,
    "bytes": 320, "stock": True, "seconds": 1.0, "perplexity": PERPLEXITY, "cut": CUT,
    "blend": [{**PLACE, "layer": n, "coarse": n / 4, "fine": 1 - n / 4} for n in range(3)],
}  # fmt: skip
COMPARED: dict[str, Any] = {
    "schema": 1, "kind": "compare", "model": "m",
    "rows": [ROW, {**ROW, "method": EVIL, "ratio": 0.5, "removed": 0.5}],
}  # fmt: skip
SWEPT: dict[str, Any] = {
    "schema": 1, "kind": "compare", "model": f"{EVIL}, m",
    "rows": [
        {**ROW, "model": model, "seed": seed, "ratio": ratio, "removed": ratio, "method": method,
         "calibration": FULL["calibration"],
         "perplexity": [{**PERPLEXITY[0], "after": 3.0 + seed + (method == EVIL)}]}
        for model in (EVIL, "m") for method in ("flap", EVIL) for ratio in (0.2, 0.5)
        for seed in (0, 1)
    ],
    "left_out": [
        {"model": "m", "method": EVIL, "repair": "bias", "ratio": 0.9, "seed": seed, "why": EVIL,
         "died": bool(seed)}
        for seed in (0, 1)
    ],
}  # fmt: skip
SECTIONS = [
    "samples", "cut", "method", "quality", "importance", "blend", "stability", "repair",
    "recovery", "made",
]  # fmt: skip


def report(raw: dict[str, Any] | None = None, **changes: Any) -> Report:
    return Report.model_validate((FULL if raw is None else raw) | changes)


class Elements(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    page.plotting_library.cache_clear()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    yield
    page.plotting_library.cache_clear()


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    for raw in (FULL, COMPARED, SWEPT):
        file.write_text(report(raw).to_json())
        assert read_report(file) == report(raw)
        assert json.loads(file.read_text())["schema"] == 1


def test_what_is_no_number_in_json_is_null() -> None:
    bad = report(perplexity=[{**PERPLEXITY[0], "after": float("nan"), "before": float("inf")}])
    assert json.loads(bad.to_json())["perplexity"][0]["after"] is None
    assert "not finite" in html(bad)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "line 1"),
        ('{"schema": 2, "kind": "prune", "model": "m"}', "schema: Input should be 1"),
        ('{"schema": 1, "kind": "prune"}', "model: Field required"),
        ('{"schema": 1, "kind": "prune", "model": "m", "x": 1}', "x: Extra inputs"),
    ],
)
def test_another_file_is_no_report(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(SecateurError, match=re.escape(says)) as caught:
        redraw(tmp_path)
    assert "Make it anew" in str(caught.value)


def test_there_is_a_section_for_everything_whether_the_run_has_it_or_not(no_library: None) -> None:
    whole, bare = report(), report({"schema": 1, "kind": "prune", "model": "m"})
    assert [one.name for one in sections(whole)] == SECTIONS
    assert not any(one.empty for one in sections(whole))
    assert [one.name for one in sections(bare) if one.empty] == SECTIONS
    for one in (whole, bare):
        ids = [attrs.get("id") for _, attrs in Elements(html(one)).found]
        assert set(SECTIONS) <= set(ids)
        assert len([name for name in ids if name]) == len({name for name in ids if name})


def test_what_a_text_holds_is_never_a_tag(no_library: None) -> None:
    for raw in (FULL, COMPARED, SWEPT):
        found = Elements(html(report(raw))).found
        assert not any(tag == "img" or "onerror" in attrs for tag, attrs in found)
        assert sum(tag == "script" for tag, _ in found) == 2  # the data and our own


def test_nothing_in_the_data_ends_its_script() -> None:
    pytest.importorskip("vl_convert")
    text = html(report())
    data = re.findall(r'<script type="application/json" id="specs">(.*?)</script>', text, re.S)
    assert len(data) == 1
    assert "<" not in data[0]
    specs = json.loads(data[0])
    assert set(specs) == {plot.name for part in sections(report()) for plot in part.plots}
    assert EVIL in data[0].encode().decode("unicode_escape") or EVIL in str(specs)


def test_every_plot_has_units_and_says_what_to_see() -> None:
    for raw in (FULL, COMPARED, SWEPT):
        for plot in (plot for part in sections(report(raw)) for plot in part.plots):
            titles = {
                one["title"]
                for mark in plot.spec["layer"]
                for axis, one in mark["encoding"].items()
                if axis in ("x", "y") and one.get("title")
            }
            assert titles, plot.name
            assert len(plot.sentence.split()) > 8, plot.name


def test_the_first_answers_are_those_of_the_numbers() -> None:
    answers = {fact.question: fact.answer for fact in facts(report())}
    assert answers["Smaller?"] == "\N{MINUS SIGN}20.0%"
    assert answers["Faster?"] == "2.00 times"
    assert answers["Worse?"] == "Perplexity \N{MULTIPLICATION SIGN}1.50"
    assert answers["What went?"] == "Most from layers 3, 2 and 1"
    slow = {fact.question: fact for fact in facts(report(speed=[]))}
    assert slow["Faster?"].answer == "Not measured"
    assert slow["Faster?"].command.startswith("secateur bench")
    assert "20.0%" in headline(report())
    windows = [
        {"window": window, "tokens": 9, "before": 10.0, "after": after}
        for window, after in ((128, 15.0), (2048, 30.0))
    ]
    longest = report(perplexity=windows)
    answers = {fact.question: fact.answer for fact in facts(longest)}
    assert answers["Worse?"] == "Perplexity \N{MULTIPLICATION SIGN}3.00"
    assert "30.00 in windows of 2,048 tokens" in headline(longest)
    unknown = {fact.question: fact.answer for fact in facts(report(parameters=None, bytes=None))}
    assert unknown["Smaller?"] == "Not recorded"


def test_layers_that_lost_alike_are_not_ranked() -> None:
    even = report(cut=[{**one, "removed": 20} for one in CUT])
    found = lost_most(even)
    assert found is not None
    assert "every layer" in found[0]
    assert lost_most(report(cut=[])) is None


def test_who_removed_less_does_not_win_by_that() -> None:
    def row(removed: float, after: float | None) -> Average:
        perplexity = [{**PERPLEXITY[0], "after": after}]
        return Average((Row(**{**ROW, "removed": removed, "perplexity": perplexity}),))

    worse, less, more = row(0.2, 9.0), row(0.15, 2.1), row(0.2, 3.0)
    assert winner([worse, less, more]) is more
    assert winner([row(0.2, None), worse]) is worse
    near = [row(0.197, 3.0), row(0.203, 5.0)]
    assert winner(near) is near[0]
    far = [row(0.186, 10.0), row(0.197, 12.0)]
    assert winner(far) is far[1]
    assert "lost less, and removed less" in who_won(far, "?").detail
    assert "removed less" not in who_won([worse, more], "?").detail


def test_several_seeds_are_one_line_with_their_deviation(no_library: None) -> None:
    found = report(SWEPT)
    (quality,) = (part for part in sections(found) if part.name == "quality")
    assert [table.caption.split(" (")[0] for table in quality.tables] == [
        f"Every method on {model}" for model in (EVIL, "m")
    ]
    for table in quality.tables:
        place = table.columns.index("perplexity, window 16")
        assert {row[place].text for row in table.rows} == {"3.50 ± 0.71", "4.50 ± 0.71"}
        assert {row[-1].text for row in table.rows} == {"2"}
        assert len(table.best) == 2
    answers = {fact.question: fact for fact in facts(found)}
    assert answers["Which won on m?"].answer == "flap + bias"
    assert "3.50 ± 0.71 at 20%; 3.50 ± 0.71 at 50%" in answers["Which won on m?"].detail
    assert answers["Left out?"].answer == "2 of 18 runs"
    bars = quality.plots[0].spec["layer"][1]["data"]["values"]
    assert {(round(one["low"], 2), round(one["high"], 2)) for one in bars} == {
        (2.79, 4.21), (3.79, 5.21),
    }  # fmt: skip
    one_seed = report({**SWEPT, "rows": SWEPT["rows"][::2]})
    assert "\N{PLUS-MINUS SIGN}" in html(found)
    assert "\N{PLUS-MINUS SIGN}" not in html(one_seed)


def test_a_difference_that_one_seed_may_make_is_no_victory() -> None:
    def row(method: str, removed: float, after: float) -> dict[str, Any]:
        perplexity = [{**PERPLEXITY[0], "after": after}]
        return {**ROW, "method": method, "removed": removed, "perplexity": perplexity}

    rows = [row("a", 0.2, 3.0), row("b", 0.2, 3.05), row("c", 0.2, 3.1), row("d", 0.19, 3.01)]
    found = report({**COMPARED, "rows": rows})
    (won,) = (fact for fact in facts(found) if fact.question.startswith("Which won"))
    assert won.answer.startswith("a")
    assert "; b" in won.detail
    assert "as good" in won.detail
    assert not {"c", "d"} & set(won.detail.replace(";", "").split())


def test_the_whole_layer_is_drawn_across_its_kinds() -> None:
    cut = [*CUT, *({**one, "kind": "kv_group", "parameters": 400} for one in CUT)]
    (plot,) = (
        plot for part in sections(report(cut=cut)) for plot in part.plots
        if plot.name == "cut-plot"
    )  # fmt: skip
    bars, lines = plot.spec["layer"]
    for row in lines["data"]["values"]:
        own = [one for one in cut if one["layer"] == row["layer"]]
        share = sum(one["removed"] for one in own) / sum(one["parameters"] for one in own)
        assert row["whole layer"] == pytest.approx(share)
    assert len(lines["data"]["values"]) == len({row["layer"] for row in bars["data"]["values"]})


def test_histograms_count_every_unit_once_where_it_is() -> None:
    structure = open_model(tiny_model("llama-gqa")).structure
    draw = torch.Generator().manual_seed(0)
    scores = {a.name: torch.rand(a.units, 2, generator=draw) for a in structure.axes}
    plan = Plan({a.name: tuple(range(1, a.units)) for a in structure.axes}, "", "")
    found = scores_of(structure.axes, scores, plan)
    assert len(found) == len(structure.axes)
    for one, axis in zip(found, sorted(structure.axes, key=lambda a: a.kind), strict=True):
        own = scores[axis.name].double().sum(dim=1)
        assert (sum(one.stay), sum(one.go)) == (axis.units - 1, 1)
        edges = torch.tensor(one.edges, dtype=torch.float64)
        counts = torch.tensor(one.stay) + torch.tensor(one.go)
        below = torch.tensor([(own < edge).sum() for edge in edges[1:-1]])
        assert torch.equal(counts.cumsum(0)[:-1], below)
        wanted = torch.quantile(own, torch.tensor([0, 0.05, 0.5, 1], dtype=torch.float64))
        assert torch.allclose(
            torch.tensor([one.quantiles[n] for n in (0, 1, 3, 6)]).double(), wanted, rtol=1e-6
        )


def test_units_that_do_not_change_are_wholly_stable() -> None:
    structure = open_model(tiny_model("llama-gqa")).structure
    axis = structure.axes[0]
    same = torch.rand(axis.units).expand(4, -1)
    (found,) = stability_of(structure, {axis.name: same})
    assert set(found.quantiles) == {0.0}
    assert stability_of(structure, {axis.name: same[:1]}) == []


def test_a_run_writes_its_report_and_no_place_of_this_machine(
    tiny_folder: Any, text_file: Path, tmp_path: Path, no_library: None
) -> None:
    common = {"calibration": str(text_file), "samples": 8, "length": 16, "align": 1}
    folder = tiny_folder()
    for out in ("one", "two"):
        secateur.prune(folder, out=tmp_path / out, method="saap", ratio=0.3, **common)
    first = (tmp_path / "one" / "report.json").read_bytes()
    assert first == (tmp_path / "two" / "report.json").read_bytes()
    pages = [(tmp_path / out / "report.html").read_bytes() for out in ("one", "two")]
    assert pages[0] == pages[1]
    for text in (first.decode(), pages[0].decode()):
        assert str(tmp_path) not in text
        assert str(text_file.parent) not in text
    found = read_report(tmp_path / "one" / "report.json")
    assert found.stability
    assert found.blend
    assert found.importance
    assert sum(one.removed for one in found.cut) > 0
    data = {"data": str(text_file), "samples": 24, "length": 16, "steps": 2, "prompts": 0}
    secateur.recover(tmp_path / "one", out=tmp_path / "better", teacher=str(folder), **data)
    after = read_report(tmp_path / "better" / "report.json")
    assert (after.kind, after.cut, after.stability) == ("recover", found.cut, found.stability)
    assert after.recovery is not None
    assert after.recovery.checks
    assert not after.samples
    assert str(text_file.parent) not in (tmp_path / "better" / "report.json").read_text()


@pytest.mark.samples
def test_samples_are_what_the_models_write(
    tiny_folder: Any, text_file: Path, tmp_path: Path, no_library: None
) -> None:
    folder, out = tiny_folder(), tmp_path / "small"
    given = {"calibration": str(text_file), "samples": 8, "length": 16, "method": "flap"}
    result = secateur.prune(folder, out=out, ratio=0.3, prompts=2, **given)
    found = read_report(out / "report.json").samples
    assert not any("report" in note for note in result.notes)
    if not found:
        pytest.skip("the toy's vocabulary has no place for the prompts")
    tokenizer = open_model(folder).tokenizer
    for path, texts in ((folder, [s.before for s in found]), (out, [s.after for s in found])):
        model = secateur.load(path)
        for sample, text in zip(found, texts, strict=True):
            ids = tokenizer(sample.prompt, return_tensors="pt")["input_ids"]
            new = model.generate(ids, do_sample=False, max_new_tokens=32, max_length=None)
            whole = tokenizer.decode(new[0], skip_special_tokens=True)
            assert whole.endswith(text)


@pytest.mark.samples
def test_a_report_outlives_its_samples(
    tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_library: None
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("secateur.pipeline.continuing.continuations", fails)
    monkeypatch.setattr("secateur.pipeline.continuing.PROMPTS", ("a",))
    out = tmp_path / "small"
    result = secateur.prune(tiny_folder(), out=out, method="magnitude", evaluate="none")
    assert read_report(out / "report.json").samples == ()
    assert any("no text was written" in note for note in result.notes)


def test_a_run_outlives_its_report(
    tiny_folder: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("secateur.pipeline.reporting.html", fails)
    out = tmp_path / "small"
    result = secateur.prune(
        tiny_folder(), out=out, calibration=str(text_file), method="magnitude", evaluate="none"
    )
    assert (out / "model.safetensors").exists()
    assert any("no ink" in note for note in result.notes)


def test_a_page_is_whole_or_that_of_before(
    tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What breaks off while it is written, as on a full disk, leaves nothing."""

    whole = Path.write_text

    def breaks_off(path: Path, text: str, **how: Any) -> None:
        whole(path, text[: 1000 if "report" in path.name else None], **how)
        if "report" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "small"
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", breaks_off)
        secateur.prune(tiny_folder(), out=out, method="magnitude", evaluate="none", force=True)
    assert not [file for file in out.iterdir() if "report" in file.name]
    secateur.prune(tiny_folder(), out=out, method="magnitude", evaluate="none", force=True)
    before = (out / "report.html").read_bytes()
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", breaks_off)
        with pytest.raises(OSError, match="No space left"):
            redraw(out)
    assert (out / "report.html").read_bytes() == before


def test_a_comparison_without_perplexity_still_has_a_page(tmp_path: Path, no_library: None) -> None:
    row = {
        "model": "m", "method": "a", "repair": "none", "ratio": 0.2, "removed": 0.2,
        "parameters": 9,
        "stock": True, "seconds": 1.0, "bytes_each": 4, "perplexity": [], "seed": 0,
        "calibration": None, "evaluation": None,
    }  # fmt: skip
    found = Comparison([{}], {"model": "/somewhere/m", "evaluate": "none"})
    found.write_report(tmp_path, [row])
    assert "/somewhere" not in (tmp_path / "report.json").read_text()
    assert "was not measured" in (tmp_path / "report.html").read_text()


def test_without_the_library_the_page_says_what_to_type_and_has_a_picture(no_library: None) -> None:
    text = html(report(COMPARED))
    assert "secateur[report]" in text
    assert "<svg" in text


# --- in a browser ---------------------------------------------------------------------------------

in_chromium = pytest.mark.skipif(not FOUND, reason="chromium and chromedriver are not installed")


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    pytest.importorskip("vl_convert")
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@in_chromium
@pytest.mark.parametrize("raw", [FULL, COMPARED, SWEPT], ids=["run", "comparison", "sweep"])
def test_the_page_stands_in_a_browser(raw: dict[str, Any], window: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html(report(raw)), encoding="utf-8")
    window.log(), window.log("performance")
    for width in (1280, 360):
        for scheme in ("light", "dark"):
            window.open(file, width, scheme)
            assert [one for one in window.log() if one["level"] != "INFO"] == []
            assert window.run("return document.documentElement.scrollWidth") <= width
            blank = window.run(
                """return [...document.querySelectorAll('.plot')].filter((plot) =>
                  ![...plot.querySelectorAll('.mark-rect path, .mark-symbol path, .mark-rule line,'
                    + ' .mark-line path')].some((one) => one.getBoundingClientRect().width > 1
                    || one.getBoundingClientRect().height > 1)).map((plot) => plot.id)"""
            )
            assert blank == []
            shown = window.run(
                "return getComputedStyle(document.documentElement).getPropertyValue('--paper')"
            )
            assert shown == {"light": "#ffffff", "dark": "#18201c"}[scheme]
            assert _contrasts(window) == []
    asked = [json.loads(one["message"])["message"] for one in window.log("performance")]
    asked = [one for one in asked if one["method"] == "Network.requestWillBeSent"]
    urls = [one["params"]["request"]["url"] for one in asked]
    assert urls
    assert {url.split(":")[0] for url in urls} <= {"file", "data"}


def _contrasts(window: Browser) -> list[str]:
    """Texts whose contrast with what is behind them is below 4.5 (WCAG AA)."""
    found: list[str] = window.run(
        """const light = (rgb) => rgb.map((v) => v / 255)
             .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
             .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
           const parse = (text) => text.match(/[\\d.]+/g).map(Number);
           const behind = (one) => { for (; one; one = one.parentElement) {
             const c = parse(getComputedStyle(one).backgroundColor); if (c.length < 4) return c; }
             return [255, 255, 255]; };
           return [...document.querySelectorAll('body *')].filter((one) =>
             [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim())
             && one.getClientRects().length && !one.closest('script, style')).filter((one) => {
               const style = getComputedStyle(one);
               const ink = parse(one.closest('svg') ? style.fill : style.color).slice(0, 3);
               const [a, b] = [light(ink), light(behind(one.closest('svg') || one))];
               return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5; })
             .map((one) => one.textContent.slice(0, 40));"""
    )
    return found


@in_chromium
def test_tables_sort_plots_widen_and_colours_switch(window: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html(report()), encoding="utf-8")
    window.open(file, 1280, "light")
    column = (
        "return [...document.querySelectorAll('#cut tbody tr')].map((r) => r.cells[4].innerText)"
    )
    press = "document.querySelectorAll('#cut th button')[4].click();"
    assert window.run(press + column) == ["0", "10", "20", "30"]
    assert window.run(press + column) == ["30", "20", "10", "0"]
    assert window.run("return document.querySelector('#cut th[aria-sort]').ariaSort") == (
        "descending"
    )
    width = "return document.querySelector('#cut-plot svg').getBoundingClientRect().width"
    before = window.run(width)
    window.run("document.querySelector('#cut [data-zoom=\"1\"]').click()")
    assert window.run(width) > 1.2 * before
    window.run("for (const _ of [1, 2]) document.getElementById('theme').click()")
    assert window.run("return document.documentElement.dataset.theme") == "dark"


@in_chromium
def test_a_pointer_is_told_the_value(window: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html(report()), encoding="utf-8")
    window.open(file, 1280, "light")
    box = window.run(
        """document.querySelector('#cut-plot').scrollIntoView(
             { behavior: 'instant', block: 'center' });
           const bars = [...document.querySelectorAll('#cut-plot .mark-rect path')];
           const box = bars.at(-1).getBoundingClientRect();
           return [box.x + box.width / 2, box.y + box.height / 2]"""
    )
    told = ""
    for step in range(20):
        window.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + step % 2, y=box[1])
        told = window.run(
            "return document.querySelector('#vg-tooltip-element.visible')?.innerText ?? ''"
        )
        if told:
            break
        time.sleep(0.1)
    assert "37.5%" in told


DOCS = Path(__file__).parent.parent.parent / "docs"


def test_the_schema_of_the_documentation_is_that_of_the_code() -> None:
    wanted = json.dumps(Report.model_json_schema(), indent=1) + "\n"
    assert (DOCS / "report.schema.json").read_text() == wanted, "write it anew (docs/report.md)"
    page_text = (DOCS / "report.md").read_text()
    for name, field in Report.model_fields.items():
        assert f"`{field.alias or name}`" in page_text


@pytest.mark.parametrize(
    ("tried", "says", "marked"),
    [
        ([("a", None), ("b", None)], "No number of what was tried is finite", 0),
        ([("a", 0.0), ("b", 0.1), ("c", 0.101)], "a with global won: of those", 1),
        ([("a", 0.3), ("b", 0.301)], "a with global won by a hair (b with global is 0.3%", 1),
        ([("a", 0.3), ("b", 0.4)], "a with global won: of those", 1),
    ],
)
def test_who_won_and_by_how_much(
    tried: list[tuple[str, float | None]], says: str, marked: int
) -> None:
    ways = [
        {"importance": name, "search": "global", "repair": "refit", "windows": 8, "divergence": kl}
        for name, kl in tried
    ]
    method = {"name": "best", "importance": "a", "search": "global", "repair": "refit"}
    found = html(report(method=method, contest=ways))
    assert says in found
    assert found.count('<span class="mark">won</span>') == marked


def test_what_is_not_finite_wins_nothing() -> None:
    broken = {**ROW, "perplexity": [{**PERPLEXITY[0], "after": None}]}
    found = report({**COMPARED, "rows": [broken]})
    assert 'class="mark"' not in html(found)


def test_names_of_scores_searches_and_repairs_are_explained() -> None:
    found = dict(words(Report.model_validate(FULL)))
    for name in ("wifv (score)", "global (search)", "refit (repair)"):
        assert name in found
        assert len(found[name]) > 20
    assert not any(EVIL in name for name in found), "what nobody knows is not explained"
    rows = [
        Row.model_validate({**ROW, "method": method, "repair": repair})
        for method, repair in (("flap", "bias"), ("wanda-sp", "bias"))
    ]
    compared = Report.model_validate({"schema": 1, "kind": "compare", "model": "m", "rows": rows})
    names = [name for name, _ in words(compared) if "(" in name]
    assert names == ["wanda-sp (score)", "bias (repair)"]
