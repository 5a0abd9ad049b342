"""Prune the embedded model by every method there is; print a table, write a page.

Run by `scripts/demo`, which sets everything up.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import secateur_command  # noqa: F401  (a program: secateur leaves torch to what asks for it)
from secateur.cli.large_pages import ask_for_large_pages
from secateur.cli.threads import let_threads_sleep_beside_others

let_threads_sleep_beside_others()  # both are read when torch is imported, by what follows
ask_for_large_pages()

import transformers  # noqa: E402

import secateur  # noqa: E402
from secateur.cli.screen import Screen, table  # noqa: E402
from secateur.data.sources import embedded_folder  # noqa: E402
from secateur.methods import METHODS  # noqa: E402
from secateur.pipeline.record import versions  # noqa: E402
from secateur.pipeline.reporting import blends_of, cuts_of, write_report  # noqa: E402
from secateur.report import Perplexity, Report, Row  # noqa: E402
from secateur.report.comparison import Trial, trial_columns, trial_row  # noqa: E402
from secateur.report.summary import form_word  # noqa: E402

RATIOS = (0.2, 0.5)
STEPS = 25
OUT = Path("demo-output")
STORE = OUT / "store"

ABOUT = (
    "The model that Secateur ships (a Llama with grouped-query attention, 2.8 million parameters,"
    " trained on Python's documentation), pruned by every method at the same ratio, calibrated on"
    " the same 64 windows of 256 tokens; perplexity on text that neither training nor calibration"
    f" saw. flap + distil is FLAP's model after {STEPS} steps of distillation from the whole one."
    " Seconds are of what no row before had found: passes over the whole model are shared."
    " One seed, one toy model: which method wins here says little about yours."
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
        prompts=0, store=STORE, progress=screen,
    )  # fmt: skip
    flap = next(t for t in trials if (t.method, t.ratio) == ("flap", ratio))
    values, size = measured(out), megabytes(out)
    seconds, form = flap.seconds + done.seconds, form_of(done.numbers)
    return Trial("flap", ratio, flap.removed, values, size, seconds, "distil", form)


def form_of(numbers: Mapping[str, Any]) -> str:
    """Whether a folder is a stock checkpoint."""
    return form_word(stock=numbers["form"]["stock"])


def pruned(method: str, ratio: float, screen: Screen) -> tuple[Trial, dict[str, Any]]:
    """The embedded model pruned by one method; what was cut where, and the blend."""
    print(f"{method} at {ratio:.0%} ...", file=sys.stderr)
    out = OUT / f"{method}-{ratio * 100:.0f}-percent"
    result = secateur.prune(
        embedded_folder(), out=out, force=True, method=method, ratio=ratio, align=1,
        calibration="embedded", samples=64, evaluate="none", prompts=0, store=STORE,
        progress=screen,
    )  # fmt: skip
    removed, seconds = result.numbers["removed_share"], result.seconds["total"]
    values, size, form = measured(out), megabytes(out), form_of(result.numbers)
    trial = Trial(method, ratio, removed, values, size, seconds, form=form)
    blend = blends_of(result.structure, result.numbers.get("blend"))
    return trial, {"cut": tuple(cuts_of(result.structure, result.plan)), "blend": tuple(blend)}


def row_of(dense: Trial, trial: Trial, parts: Mapping[str, Any]) -> Row:
    """A trial as the report has it."""
    size = int(trial.size * 1e6)
    return Row(
        method=trial.method, repair=trial.repair, ratio=trial.ratio, removed=trial.removed,
        parameters=size // 4, bytes=size, stock=trial.form == form_word(stock=True),
        seconds=trial.seconds,
        perplexity=tuple(
            Perplexity(window=window, tokens=25_000, before=dense.perplexity[window], after=value)
            for window, value in trial.perplexity.items()
        ),
        **parts,
    )  # fmt: skip


def report(dense: Trial, trials: Sequence[Trial], parts: Sequence[Mapping[str, Any]]) -> None:
    """Print a table for each ratio; write the page and the numbers."""
    heads = [head.replace(", window", " at") for head in trial_columns(list(dense.perplexity))]
    for ratio in RATIOS:
        rows = [trial_row(trial) for trial in (dense, *trials) if trial.ratio in (ratio, 0.0)]
        table(f"{ratio:.0%} of the decoder's linears removed", heads, rows)
    both = zip(trials, parts, strict=True)
    found = Report(
        kind="compare",
        model="The embedded model",
        evaluated_on=ABOUT,
        rows=tuple(row_of(dense, trial, own) for trial, own in both),
        versions=versions(),
    )
    write_report(OUT, found)
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
    parts: list[dict[str, Any]] = []
    for ratio in RATIOS:
        for method in METHODS:
            trial, own = pruned(method, ratio, screen)
            trials.append(trial)
            parts.append(own)
        trials.append(recovered(ratio, trials, screen))
        parts.append({})
    shutil.rmtree(STORE, ignore_errors=True)
    report(dense, trials, parts)
    print(f"The pruned models, results.json and report.html are in {OUT}/")
    print(f'Load one in Python:  import secateur; secateur.load("{OUT}/flap-20-percent")')


if __name__ == "__main__":
    main()
