"""Rows and charts say what the trials say."""

from dataclasses import replace

import pytest

from conftest import tiny_model
from secateur.export.loading import about_custom
from secateur.models import open_model
from secateur.report import cut_words
from secateur.report.averages import averages, row_of
from secateur.report.blends import blend_chart, blend_rows, blends_of
from secateur.report.comparison import Trial, chart, trial_columns, trial_row
from secateur.report.tables import _csv, comparison_tables
from secateur.structure import Plan

DENSE = Trial("not pruned", 0.0, 0.0, {128: 10.0, 512: 9.0}, 5.0, 0.0)
TRIALS = [
    Trial(method, ratio, ratio, {128: value, 512: value - 1}, 5.0 * (1 - ratio), 1.5)
    for method, ratio, value in (("a", 0.2, 14.0), ("<b>", 0.2, 12.0), ("a", 0.5, 44.0))
]


def test_the_chart_has_labelled_axes_and_is_the_same_for_the_same_data() -> None:
    drawn = chart(DENSE, TRIALS, 128)
    assert drawn == chart(DENSE, TRIALS, 128)
    for words in ("linears removed, %", "perplexity per token, window 128"):
        assert f"<!-- {words}" in drawn or words in drawn


def test_rows_fit_their_columns() -> None:
    assert len(trial_row(DENSE)) == len(trial_columns([128, 512]))


def test_perplexities_that_differ_in_the_terminal_differ_on_the_page() -> None:
    near = [replace(DENSE, perplexity={128: value}) for value in (5.47, 5.51)]
    assert trial_row(near[0]) != trial_row(near[1])


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ((), "No units"),
        (("layers.1.layer",), "Whole layers"),
        (("layers.0.mlp_block",), "Whole MLP blocks"),
        (
            ("layers.0.mlp", "layers.0.attention", "layers.2.layer"),
            "Whole attention heads, MLP channels and layers",
        ),
    ],
)
def test_the_card_says_what_went(gone: tuple[str, ...], said: str) -> None:
    structure = open_model(tiny_model("llama-gqa")).structures
    plan = Plan(dict.fromkeys(gone, (0,)) | {n: () for n in gone if n[-1] in "kr"}, "", "")
    assert cut_words(structure, plan) == said


def test_a_comparison_says_which_rows_are_stock() -> None:
    rows = [
        {
            "model": "m", "method": f"a{stock}", "repair": "none", "ratio": 0.2, "removed": 0.2,
            "stock": stock, "parameters": 9, "bytes_each": 4, "seconds": 1.0, "seed": 0,
            "perplexity": [{"window": 16, "tokens": 9, "before": 2.0, "after": 3.0}],
        }
        for stock in (True, False)
    ]  # fmt: skip
    ((_, columns, lines),) = comparison_tables(rows)
    assert [line[columns.index("form")] for line in lines] == ["stock", "custom"]
    table = _csv(averages(map(row_of, rows)))
    assert [line.rsplit(",", 1)[1] for line in table.splitlines()] == [
        "form", "stock", "custom",
    ]  # fmt: skip


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


def test_a_card_does_not_promise_peft_what_it_denies_it() -> None:
    packed = "\n".join(about_custom("its weights are in few bits", packed=True))
    assert "PEFT cannot adapt" in packed
    assert "PEFT without" not in packed
    assert "PEFT without" in "\n".join(about_custom("layers differ"))
