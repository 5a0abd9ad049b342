"""How close two versions of the code come: plans by the units that go, weights by their distance.

    python benchmarks/close.py MODEL --text text.txt --write before/      (with the one version)
    python benchmarks/close.py MODEL --text text.txt --against before/    (with the other)

For changes of the arithmetic, after which `unchanged.py` can find no two bytes alike. Every method,
and repair that fits, is run in fp32 and in bf16; of those whose plans are the same
the weights are compared, tensor by tensor: |new - old| / |old|, the largest of all tensors. Where
plans differ, units were so nearly alike that rounding decides.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file

from secateur import read_plan
from secateur.cli.main import run
from secateur.methods import METHODS
from secateur.structure import Plan

_SHORT = "--samples 16 --length 64 --align 1 --ratio 0.2"
REPAIRS = ("none", "bias", "refit", "mask-tuning")


def cases() -> dict[str, str]:
    """The arguments of each, by name."""
    found = {
        f"{method} {dtype}": f"--method {method} --repair none --dtype {dtype}"
        for method in METHODS
        for dtype in ("float32", "bfloat16")
    }
    found |= {
        f"flap, {repair} {dtype}": f"--method flap --repair {repair} --dtype {dtype}"
        for repair in REPAIRS
        for dtype in ("float32", "bfloat16")
    }
    return found


def cut(model: str, text: str, arguments: str, out: Path) -> None:
    """One folder."""
    command = f"prune {model} --calibration {text} --evaluate none {_SHORT} {arguments}"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = run([*command.split(), "--out", str(out)])
    if code:
        sys.exit(f"{command} fails")


def removed(plan: Plan) -> set[tuple[str, int]]:
    """The units that go."""
    return {
        (name, unit)
        for name, kept in plan.keep.items()
        for unit in set(range(plan.units[name])) - set(kept)
    }


def compared(old: Path, new: Path) -> tuple[float, float | None]:
    """The share of the units that go in both plans; the largest distance of a tensor."""
    one, other = (removed(read_plan(folder)) for folder in (old, new))
    shared = len(one & other) / max(len(one), len(other), 1)
    if one != other:
        return shared, None
    distances = [0.0]
    for file in old.glob("*.safetensors"):
        before, after = load_file(file), load_file(new / file.name)
        for name, tensor in before.items():
            size = tensor.double().norm().clamp(min=1e-30)
            distances.append(float((after[name].double() - tensor.double()).norm() / size))
    return shared, max(distances)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--write", type=Path)
    where.add_argument("--against", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.write:
        for name, arguments in cases().items():
            cut(options.model, options.text, arguments, options.write / name)
        return
    print("| case | units that go in both | largest distance of a tensor |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        for name, arguments in cases().items():
            cut(options.model, options.text, arguments, Path(work) / name)
            shared, distance = compared(options.against / name, Path(work) / name)
            far = "plans differ" if distance is None else f"{distance:.1e}"
            print(f"| {name} | {shared:.1%} | {far} |", flush=True)


if __name__ == "__main__":
    main()
