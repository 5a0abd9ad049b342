"""A step of distillation as a multiple of the student's own forward and backward.

    python benchmarks/training_step.py small/ --teacher model/ --data text.jsonl

A step is what `secateur recover --recipe distil` does between two checks: `--batch` examples, the
teacher's predictions from the cache, the clipped gradient, AdamW. Plain is the student's own loss on
the same examples, in the same pieces, dtype and with the same parameters trained, and its backward.
The two take turns in one process. What keeping the state costs is measured apart: once, in seconds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from secateur.config import make_recover_config
from secateur.pipeline.student import Student, open_student
from secateur.pipeline.training import make_trainer
from secateur.pipeline.training_data import TrainingData, read_data

# A step may take so many times the student's own forward and backward.
FLOOR = 1.15


def plain(trainer: Any, student: Student, step: int) -> None:
    """The student's own loss on the examples of a step, and its backward."""
    data, schedule = trainer._data, trainer._schedule
    rows = schedule.rows(step, trainer._train)
    for part in rows.split(8):
        ids = data[part].ids.to(student.device)
        with torch.autocast(student.device.type, student.autocast, student.autocast is not None):
            loss = trainer._model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    for parameter in trainer._parameters.values():
        parameter.grad = None


def seconds(act: Callable[[], Any], device: torch.device) -> float:
    """How long `act` takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def opened(folder: str, data: str, **settings: Any) -> tuple[Student, TrainingData]:
    """The student and what it is trained on."""
    config = make_recover_config(
        model=folder, data=data, recipe="distil", evaluate="none", **settings
    )
    student = open_student(config)
    return student, read_data(student.opened, student.config)


def measured(folder: str, data: str, *, repeats: int = 3, **settings: Any) -> dict[str, Any]:
    """Seconds of both, the multiple of each repeat and its median; of saving, seconds and bytes."""
    student, examples = opened(folder, data, **settings)
    with tempfile.TemporaryDirectory() as place:
        _, trainer = make_trainer(student, examples, Path(place) / "state")
        device = student.device
        times: dict[str, list[float]] = {"plain": [], "step": []}
        plain(trainer, student, 0)
        trainer._step(0)
        for turn in range(1, repeats + 1):
            times["plain"].append(seconds(lambda at=turn: plain(trainer, student, at), device))
            times["step"].append(seconds(lambda at=turn: trainer._step(at), device))
        saving = seconds(trainer._save, device)
        size = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
    multiples = [s / p for s, p in zip(times["step"], times["plain"], strict=True)]
    return {
        "model": folder,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(student.autocast or torch.float32).removeprefix("torch."),
        "trained": student.config.trained,
        "seconds": times,
        "multiples": multiples,
        "multiple": statistics.median(multiples),
        "spread": max(multiples) - min(multiples),
        "floor": FLOOR,
        "save": {"seconds": saving, "bytes": size},
    }


def main() -> None:
    """Print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--train", default="consumers")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    given = vars(parser.parse_args())
    print(json.dumps(measured(given.pop("model"), given.pop("data"), **given), indent=1))


if __name__ == "__main__":
    main()
