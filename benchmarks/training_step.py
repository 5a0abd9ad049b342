"""A step of distillation as a multiple of the student's own forward and backward.

    python benchmarks/training_step.py small/ --teacher model/ --data text.jsonl

A step is what `secateur recover --recipe distil` does between two checks: a batch of examples, the
teacher's predictions from the cache, the clipped gradient, AdamW. Plain is the student's own loss
on the same examples, as many at once, in the same dtype and with the same parameters trained, and
its backward. The two take turns in one process. CPU seconds stand beside those of the clock, for a
machine that does something else besides. What keeping the state costs is measured apart, once.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from secateur.config import make_recover_config
from secateur.pipeline.student import Student, open_student
from secateur.pipeline.training import make_objective, make_trainer
from secateur.pipeline.training_data import TrainingData, read_data

# A step may take so many times the student's own forward and backward.
GOAL = 1.15


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


def seconds(act: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """How long `act` takes: by the clock, and of the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started, used = time.perf_counter(), time.process_time()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, time.process_time() - used


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
        objective = make_objective(student, examples.examples)
        _, trainer = make_trainer(student, examples, objective, Path(place) / "state")
        device = student.device
        acts: dict[str, Callable[[int], Any]] = {
            "plain": lambda at: plain(trainer, student, at),
            "step": trainer.step,
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in acts}
        for act in acts.values():
            act(0)
        for turn in range(1, repeats + 1):
            for name, act in acts.items():
                times[name].append(seconds(partial(act, turn), device))
        saving, _ = seconds(trainer._save, device)
        size = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
    of_clock, of_cpu = (
        [step[kind] / own[kind] for step, own in zip(times["step"], times["plain"], strict=True)]
        for kind in (0, 1)
    )
    return {
        "model": Path(folder).name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(student.autocast or torch.float32).removeprefix("torch."),
        "trained": student.config.trained,
        "examples": student.config.schedule(len(examples.examples) - examples.held).batch,
        "length": examples.examples.ids.shape[1],
        "seconds": {name: [clock for clock, _ in found] for name, found in times.items()},
        "cpu_seconds": {name: [cpu for _, cpu in found] for name, found in times.items()},
        "multiples": of_clock,
        "multiple": statistics.median(of_clock),
        "spread": max(of_clock) - min(of_clock),
        "cpu_multiple": statistics.median(of_cpu),
        "cpu_spread": max(of_cpu) - min(of_cpu),
        "goal": GOAL,
        # nothing is saved where that is not worth it
        "save": {"seconds": saving, "bytes": size} if size else None,
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
