"""The comparison page says what the trials say, and its chart is labelled."""

import re

from secateur.report.blend import blend_chart, blend_rows, blends_of
from secateur.report.comparison import Trial, chart, page, trial_columns, trial_row
from secateur.report.tables import _csv, comparison_columns, comparison_row

DENSE = Trial("not pruned", 0.0, 0.0, {128: 10.0, 512: 9.0}, 5.0, 0.0)
TRIALS = [
    Trial(method, ratio, ratio, {128: value, 512: value - 1}, 5.0 * (1 - ratio), 1.5)
    for method, ratio, value in (("a", 0.2, 14.0), ("<b>", 0.2, 12.0), ("a", 0.5, 44.0))
]


def test_every_trial_is_in_the_page_and_the_best_of_each_ratio_is_marked() -> None:
    html = page("Title", "about", "foot", DENSE, TRIALS)
    assert html.count("<h2>") == 2
    best = re.findall(r'<tr class="best"><td>(.*?)</td>', html)
    assert best == ["&lt;b&gt;", "a"]
    for trial in TRIALS:
        assert f"<td>{trial.perplexity[128]:.1f}</td>" in html


def test_the_chart_has_labelled_axes_and_is_the_same_for_the_same_data() -> None:
    drawn = chart(DENSE, TRIALS, 128)
    assert drawn == chart(DENSE, TRIALS, 128)
    for words in ("linears removed, %", "perplexity per token, window 128"):
        assert f"<!-- {words}" in drawn or words in drawn


def test_rows_fit_their_columns() -> None:
    assert len(trial_row(DENSE)) == len(trial_columns([128, 512]))


def test_a_comparison_says_which_rows_are_stock() -> None:
    rows = [
        {
            "method": "a", "repair": "none", "ratio": 0.2, "removed": 0.2, "stock": stock,
            "parameters": 9, "seconds": 1.0,
            "perplexity": [{"window": 16, "tokens": 9, "before": 2.0, "after": 3.0}],
        }
        for stock in (True, False)
    ]  # fmt: skip
    place = comparison_columns(rows).index("form")
    assert [comparison_row(row)[place] for row in rows] == ["stock", "custom"]
    assert [line.rsplit(",", 1)[1] for line in _csv(rows).splitlines()] == [
        "form", "stock", "custom",
    ]  # fmt: skip
    trials = [Trial("a", 0.2, 0.2, {128: 9.0}, 1.0, 1.0, form=form) for form in ("stock", "custom")]
    html = page("t", "a", "f", Trial("dense", 0, 0, {128: 8.0}, 1.0, 0.0), trials)
    assert re.findall(r"<td>(stock|custom)</td>", html) == ["stock", "custom"]


BLEND = {
    "layers.10.mlp": {"coarse": 0.75, "fine": 0.25},
    "layers.9.mlp": {"coarse": 0.5, "fine": 0.5},
    "layers.9.attention": {"coarse": 0.1, "fine": 0.9},
}


def test_blend_rows_are_in_the_order_of_layers() -> None:
    assert blend_rows(BLEND) == [
        (9, "attention", "0.10", "0.90"),
        (9, "mlp", "0.50", "0.50"),
        (10, "mlp", "0.75", "0.25"),
    ]


def test_the_blend_is_drawn_by_method_and_only_where_it_varies() -> None:
    same = {axis: {"coarse": 0.5, "fine": 0.5} for axis in BLEND}
    rows = [{"method": "a", "blend": BLEND}, {"method": "b", "blend": same}, {"method": "c"}]
    assert blends_of(rows) == {"a": BLEND}
    drawn = blend_chart({"a": BLEND})
    assert drawn == blend_chart({"a": BLEND})
    for words in ("decoder layer, from 0", "share of the coarse", "attention", "mlp"):
        assert words in drawn
    assert "Blend of coarse" in page("t", "a", "f", DENSE, TRIALS, {"a": BLEND})
    assert "Blend of coarse" not in page("t", "a", "f", DENSE, TRIALS)
