"""Time against layers and tokens: what every pass costs grows with both, and with nothing else.

    python benchmarks/scaling.py CONFIG_FOLDER --out results/scaling.json --picture docs/scaling.png

Models with random weights in the shape of CONFIG_FOLDER, of 4, 8 and 16 layers; and 1, 2 and 4
times the tokens through 8 layers. Each figure is the least of the turns, from the first layer of
the first pass to the end. Beside it stands how far the middle one lies from the straight line
through the outer two. What is timed by an earlier run is not timed again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

import secateur
from turns import RATIO, Clock, Time, continued, machine

LAYERS, TOKENS, LENGTH = (4, 8, 16), (8, 16, 32), 256
PASSES: dict[str, dict[str, Any]] = {
    "flap": {"method": "flap"},
    "llm-pruner": {"method": "llm-pruner"},
    "saap": {"method": "saap"},
    "refit": {"method": "magnitude", "repair": "refit"},
}


def random_model(like: str, layers: int, out: Path) -> Path:
    """A folder with a model of random weights."""
    folder = out / f"{layers}"
    if not folder.exists():
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(like, num_hidden_layers=layers)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
    return folder


def timed(folder: Path, windows: int, settings: dict[str, Any]) -> Time:
    """Seconds of one run by the clock and of the processor."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = transformers.AutoConfig.from_pretrained(folder).vocab_size
    tokens = torch.randint(vocabulary, (windows, LENGTH), generator=generator)
    layers = f"0-{int(folder.name) - 1}"  # LLM-Pruner's would be a share of them, rounded
    given = {"ratio": RATIO, "calibration": tokens, "evaluate": "none", "layers": layers}
    given |= settings
    dry = "repair" not in settings  # a repair is a part of what is written
    return Clock.of(lambda clock: secateur.prune(folder, dry_run=dry, progress=clock, **given))


def bend(values: list[float], at: tuple[int, ...]) -> float:
    """How far the middle value lies from the line through the outer ones, as a share of it."""
    share = (at[1] - at[0]) / (at[2] - at[0])
    return values[1] / (values[0] + share * (values[2] - values[0])) - 1


def draw(rows: dict[str, Any], path: Path) -> None:
    """Two panels: seconds by layers, and by tokens; large enough for a phone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["font.size"] = 14
    figure, panels = pyplot.subplots(2, 1, figsize=(6, 8), layout="constrained")
    titles = ("16 windows of 256 tokens", "8 layers")
    labels = ("decoder layers", "calibration tokens")
    for panel, kind, title, label in zip(panels, ("layers", "tokens"), titles, labels, strict=True):
        for name in PASSES:
            one = rows[name][kind]
            panel.plot(one["at"], one["seconds"], marker="o", label=name)
        panel.set(title=title, xlabel=label, ylabel="seconds", xlim=(0, None), ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("like")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    found = continued(options.out, {"like": Path(options.like).name, "machine": machine()})
    with tempfile.TemporaryDirectory() as work:
        for name, settings in PASSES.items():
            if name in found["rows"]:
                continue
            row: dict[str, Any] = {}
            for kind, at in (("layers", LAYERS), ("tokens", TOKENS)):
                runs = [(n, 16) for n in at] if kind == "layers" else [(8, n) for n in at]
                least = []
                for layers, windows in runs:
                    folder = random_model(options.like, layers, Path(work))
                    times = [timed(folder, windows, settings) for _ in range(options.turns)]
                    least.append(min(seconds for seconds, _ in times))
                places = at if kind == "layers" else tuple(n * LENGTH for n in at)
                row[kind] = {"at": places, "seconds": least, "bend": bend(least, at)}
                print(name, kind, [round(s, 2) for s in least], f"{row[kind]['bend']:+.1%}")
            found["rows"][name] = row
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    if options.picture:
        draw(found["rows"], options.picture)


if __name__ == "__main__":
    main()
