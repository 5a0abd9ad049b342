"""Prune the embedded model by every method there is; print a table, write a page.

Run by `scripts/demo`, which sets everything up.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers

import secateur
from secateur.cli.screen import Screen, table
from secateur.data.sources import embedded_folder
from secateur.methods import METHODS
from secateur.report.blends import varies
from secateur.report.comparison import Trial, page, trial_columns, trial_row
from secateur.report.summary import form_word

RATIOS = (0.2, 0.5)
STEPS = 25
OUT = Path("demo-output")

ABOUT = (
    "The model that Secateur ships (a Llama with grouped-query attention, 2.8 million parameters,"
    " trained on Python's documentation), pruned by every method at the same ratio, calibrated on"
    " the same 64 windows of 256 tokens, and measured on text that neither training nor calibration"
    f" saw. Lower perplexity is better. The last row is FLAP's model after {STEPS} steps of"
    " distillation from the whole one."
)
FOOTNOTE = (
    "One seed, one toy model: which method wins here says little about yours. Time is that of"
    " pruning and writing, without the measuring."
)


class Bars(Screen):
    """Progress alone: what other engines make of each folder is no matter of the demo."""

    def note(self, message: str) -> None:
        """Drop the message."""


def measured(folder: Path) -> dict[int, float]:
    """Perplexity on the held-out text, by window length."""
    return {
        found.window: found.value
        for found in secateur.evaluate(folder, "embedded", evaluate_tokens=25_000)
    }


def megabytes(folder: Path) -> float:
    """Size of the weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


def recovered(ratio: float, trials: Sequence[Trial], screen: Screen) -> Trial:
    """What a short training makes of FLAP's model."""
    print(f"flap at {ratio:.0%}, then {STEPS} steps of distillation ...", file=sys.stderr)
    base = OUT / f"flap-{ratio * 100:.0f}-percent"
    out = OUT / f"flap-{ratio * 100:.0f}-percent-distilled"
    done = secateur.recover(
        base, data="embedded", recipe="distil", steps=STEPS, out=out, force=True, evaluate="none",
        progress=screen,
    )  # fmt: skip
    flap = next(t for t in trials if (t.method, t.ratio) == ("flap", ratio))
    values, size = measured(out), megabytes(out)
    seconds, form = flap.seconds + done.seconds, form_of(done.numbers)
    return Trial("flap", ratio, flap.removed, values, size, seconds, "distil", form)


def form_of(numbers: Mapping[str, Any]) -> str:
    """Whether a folder is a stock checkpoint."""
    return form_word(stock=numbers["form"]["stock"])


def pruned(method: str, ratio: float, screen: Screen) -> tuple[Trial, Any]:
    """The embedded model pruned by one method, and the blend if that differs between layers."""
    print(f"{method} at {ratio:.0%} ...", file=sys.stderr)
    out = OUT / f"{method}-{ratio * 100:.0f}-percent"
    result = secateur.prune(
        embedded_folder(), out=out, force=True, method=method, ratio=ratio, align=1,
        calibration="embedded", samples=64, evaluate="none", progress=screen,
    )  # fmt: skip
    removed, seconds = result.numbers["removed_share"], result.seconds["total"]
    values, size, form = measured(out), megabytes(out), form_of(result.numbers)
    trial = Trial(method, ratio, removed, values, size, seconds, form=form)
    blend = result.numbers.get("blend")
    return trial, blend if blend and varies(blend) else None


def report(dense: Trial, trials: Sequence[Trial], blends: Mapping[str, Any]) -> None:
    """Print a table for each ratio; write the page and the numbers."""
    heads = [head.replace(", window", " at") for head in trial_columns(list(dense.perplexity))]
    for ratio in RATIOS:
        rows = [trial_row(trial) for trial in (dense, *trials) if trial.ratio in (ratio, 0.0)]
        table(f"{ratio:.0%} of the decoder's linears removed", heads, rows)
    text = page("Every method on the embedded model", ABOUT, FOOTNOTE, dense, trials, blends)
    (OUT / "report.html").write_text(text, encoding="utf-8")
    numbers = [asdict(trial) for trial in (dense, *trials)]
    (OUT / "results.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Prune, compare, report."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    screen = Bars()
    whole = embedded_folder()
    dense = Trial(
        "not pruned", 0.0, 0.0, measured(whole), megabytes(whole), 0, form=form_word(stock=True)
    )
    trials: list[Trial] = []
    blends: dict[str, Any] = {}
    for ratio in RATIOS:
        for method in METHODS:
            trial, blend = pruned(method, ratio, screen)
            trials.append(trial)
            if blend:
                blends[method] = blend
        trials.append(recovered(ratio, trials, screen))
    report(dense, trials, blends)
    print(f"The pruned models, results.json and report.html are in {OUT}/")
    print(f'Load one in Python:  import secateur; secateur.load("{OUT}/flap-20-percent")')


if __name__ == "__main__":
    main()
