"""The comparison page says what the trials say, and its chart is labelled."""

import re

from secateur.report.comparison import Trial, chart, page, trial_columns, trial_row

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
