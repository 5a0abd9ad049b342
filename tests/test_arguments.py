"""Calls from Python with arguments of the wrong kind are refused in our words, before any work."""

import errno
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from conftest import cases, tiny_model, tiny_tokenizer
from secateur.arguments import public, refusal
from secateur.errors import ArgumentError, SecateurError
from secateur.progress import Lines, Logged

_CUT = {"method": "magnitude", "evaluate": "none", "align": 1}


@pytest.mark.parametrize(
    ("call", "says"),
    cases(
        {
            "out": (lambda m: secateur.prune(m, out=5, **_CUT), "out must be a path, not 5 .int."),
            "out nul": (lambda m: secateur.prune(m, out="a\0b", **_CUT), r"no name .* file"),
            "tokenizer": (
                lambda m: secateur.prune(m, tokenizer="x", **_CUT),
                r"tokenizer must be a tokenizer, not 'x' .str.*\nType: AutoTokenizer",
            ),
            "progress": (
                lambda m: secateur.prune(m, progress=print, **_CUT),
                "progress must have the methods",
            ),
            "force": (lambda m: secateur.prune(m, force="yes", **_CUT), "force must be True or"),
            "model": (lambda m: secateur.prune({"a": 1}, **_CUT), "model must be a folder"),
            "no model": (lambda m: secateur.prune(**_CUT), "missing a required argument: 'model'"),
            "unknown": (lambda m: secateur.prune(m, rato=3), "Did you mean 'ratio'"),
            "ratio": (lambda m: secateur.prune(m, ratio="x"), "ratio = 'x' will not do"),
            "texts": (lambda m: secateur.prune(m, ratio=["x" * 7000] * 40), "ratio = "),
            "samples": (lambda m: secateur.prune(m, samples=10**19), "samples .* is too large"),
            "digits": (lambda m: secateur.prune(m, ratio=10**5000), "ratio = one int will not do"),
            "home": (
                lambda m: secateur.prune(m, calibration="~nobody-there/x"),
                "nobody-there.* home",
            ),
            "plan": (lambda m: secateur.apply(5, m), "plan must be a Plan, a plan.json"),
            "plan {}": (lambda m: secateur.apply({}, m), "Not a plan"),
            "windows": (
                lambda m: secateur.evaluate(m, "t", evaluate_lengths=[2.5]),
                "each of evaluate_lengths",
            ),
            "windows a": (
                lambda m: secateur.evaluate(m, "t", evaluate_lengths=["a"]),
                "whole number",
            ),
            "tokens": (
                lambda m: secateur.evaluate(m, "t", evaluate_tokens=1),
                "tokens must be 2 or more",
            ),
            "text": (lambda m: secateur.evaluate(m, 5), "text must name a text"),
            "batch": (lambda m: secateur.evaluate(m, "t", batch=True), "batch must be a whole"),
            "dtype": (lambda m: secateur.load(m, dtype="banana"), "Unknown dtype .banana"),
            "dtype 3": (lambda m: secateur.load(m, dtype=3), "dtype must be a text, not 3"),
            "ratios": (
                lambda m: secateur.compare(m, methods="flap", ratios="x"),
                "ratios must be a number",
            ),
            "ratio of many": (
                lambda m: secateur.compare(m, methods="flap", ratios=0.2, ratio=0.1),
                "takes ratios, not ratio",
            ),
            "each": (
                lambda m: secateur.compare(m, methods="flap", ratios=0.2, each=3),
                "each must be a function",
            ),
            "read_plan": (lambda m: secateur.read_plan("a\0b"), "no name that a file can have"),
            "inspect": (lambda m: secateur.inspect(5), "folder must be a path"),
            "recover": (lambda m: secateur.recover(m, out=None), "out must be a path, not None"),
            "revision": (lambda m: secateur.open_model(m, revision=1), "revision must be a text"),
        }
    ),
)
def test_a_wrong_argument_is_refused(
    call: Callable[[Path], object], says: str, model: Path
) -> None:
    with pytest.raises(SecateurError, match=says) as caught:
        call(model)
    assert len(str(caught.value).splitlines()) <= 2
    assert len(str(caught.value)) < 1000


def test_an_argument_of_the_wrong_kind_is_a_type_error_too(model: Path) -> None:
    with pytest.raises(TypeError, match="must be a path"):
        secateur.prune(model, out=5, **_CUT)  # type: ignore[call-overload, arg-type]


def test_one_number_serves_as_a_list_and_torch_has_names_of_its_own(
    model: Path, text_file: Path
) -> None:
    text = str(text_file)
    one = secateur.evaluate(model, text, evaluate_lengths=16, evaluate_tokens=64)
    assert one == secateur.evaluate(
        model,
        text_file,
        evaluate_lengths=[16],
        evaluate_tokens=64,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    rows = secateur.compare(model, methods="magnitude", ratios=0.2, evaluate="none", align=1)
    assert [row["method"] for row in rows] == ["magnitude"]


def test_a_plan_may_be_a_path_its_folder_or_what_it_holds(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    made = secateur.prune(model, out=out, dry_run=True, ratio=0.4, **_CUT).plan
    held = json.loads((out / "plan.json").read_text())
    results = [
        secateur.apply(plan, model, evaluate="none").plan
        for plan in (made, out, out / "plan.json", str(out), held)
    ]
    assert all(plan.keep == made.keep for plan in results)


@pytest.mark.parametrize(
    ("units", "says"),
    [
        ((-1, 2), "keeps .-1, 2. of .*; expected ascending numbers from 0 to 55"),
        ((2, 0), "ascending"),
        ((0, 0), "ascending"),
        ((0.5, 2), "expected a tuple of whole numbers"),
        ((56,), "keeps unit 56 of .*, which has 56"),
        ("0-2", "expected a tuple"),
    ],
)
def test_a_plan_of_a_program_that_keeps_what_is_not_there_is_refused(
    units: Any, says: str, model: Path
) -> None:
    right = secateur.prune(model, dry_run=True, ratio=0.4, **_CUT)
    plan = object.__new__(secateur.Plan)
    fields = {**vars(right.plan), "keep": {**right.plan.keep, "layers.0.mlp": units}}
    plan.__dict__.update(fields)  # tests check types where users have no checks
    with pytest.raises(SecateurError, match=says):
        plan.check(right.structure)


def test_a_plan_cannot_ask_for_more_units_than_models_have(tmp_path: Path) -> None:
    axis = {"name": "layers.0.mlp", "units": 10**12, "keep": "0-999999999999"}
    raw = {"format": "secateur-plan-1", "axes": [axis]}
    with pytest.raises(SecateurError, match="no model has so many"):
        secateur.Plan.from_raw(raw)
    raw = {**raw, "axes": [{**axis, "units": 8, "keep": "9" * 5000}]}
    with pytest.raises(SecateurError, match="not a number or a range") as caught:
        secateur.Plan.from_raw(raw)
    assert len(str(caught.value)) < 200


# --- what the system refuses ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), r"Permission denied \(x/y\)"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left. Free some"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "--batch"),
    ],
)
def test_what_the_system_refuses_is_said(error: Exception, says: str) -> None:
    @public()
    def fails() -> None:
        raise error

    with pytest.raises(SecateurError, match=says):
        fails()


class PanicException(BaseException):
    """As pyo3 has it."""


def test_a_library_that_panics_is_said_and_an_interrupt_is_one(model: Path) -> None:
    @public()
    def fails(error: BaseException) -> None:
        raise error

    with pytest.raises(SecateurError, match=r"A library broke off .'index out of bounds'"):
        fails(PanicException("index out of bounds"))
    with pytest.raises(KeyboardInterrupt):
        fails(KeyboardInterrupt())


def test_a_bug_is_no_bad_input() -> None:
    @public()
    def fails() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        fails()
    assert refusal(ValueError("x")) is None
    assert refusal(OSError("transformers raises these without a number")) is None


# --- the course of long work ----------------------------------------------------------------------


def _slow(count: int) -> Iterator[int]:
    for item in range(count):
        time.sleep(0.03)
        yield item


def test_a_long_stage_says_where_it_is_and_a_short_one_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Lines, "FIRST", 0.05)
    monkeypatch.setattr(Lines, "OFTEN", 0.05)
    said: list[str] = []
    lines = Lines(said.append)
    assert list(lines.track(_slow(12), "gradients", 12, "layer")) == list(range(12))
    assert re.fullmatch(r"gradients: layer \d+ of 12, about 0:0\d left", said[-1])
    count = len(said)
    time.sleep(0.2)  # it is over
    assert 2 <= len(said) == count
    monkeypatch.setattr(Lines, "FIRST", 30.0)
    list(lines.track(_slow(2), "scores", 2, "axis"))
    assert len(said) == count


def test_what_comes_before_the_first_stage_says_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Lines, "FIRST", 0.02)
    said: list[str] = []
    lines = Lines(said.append)
    lines.begin("reading")
    time.sleep(0.1)
    lines.close()
    assert said == ["reading: 0:00 so far"]


def test_what_began_before_has_its_first_line_the_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "FIRST", 60.0)
    said: list[str] = []
    lines = Lines(said.append)
    lines.begin("reading", 75)
    time.sleep(0.1)
    lines.close()
    assert said == ["reading: 1:15 so far"]


def test_a_stage_that_breaks_off_says_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "FIRST", 0.5)
    said: list[str] = []
    course = Lines(said.append).track(_slow(9), "scores", 9, "axis")
    next(course)
    course.close()  # type: ignore[attr-defined]
    time.sleep(0.7)
    assert said == []


def test_python_callers_find_notes_and_lines_in_the_log(
    model: Path, text_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="secateur"):
        settings = {"calibration": str(text_file), "samples": 999, "length": 16, "align": 1}
        secateur.prune(model, evaluate="none", **settings)  # type: ignore[arg-type]
    assert "not the 999 asked for" in caplog.text
    assert isinstance(Logged(), secateur.progress.Progress)


# --- modules --------------------------------------------------------------------------------------


def test_a_tokenizer_that_loads_and_does_not_work_is_refused(model: Path) -> None:
    file = model / "tokenizer_config.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps({**raw, "model_max_length": "many"}))
    with pytest.raises(SecateurError, match=r"tokenizer in .* does not load: TypeError"):
        _ = secateur.open_model(model).tokenizer


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw | {"pre_tokenizer": {"type": "FromTheFuture"}},
        lambda raw: raw | {"model": None},
        lambda raw: raw | {"added_tokens": "x"},
    ],
)
def test_a_tokenizer_of_another_version_is_refused(
    damage: Callable[[dict[str, Any]], dict[str, Any]], model: Path
) -> None:
    """tokenizers raises a bare Exception."""
    file = model / "tokenizer.json"
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    with pytest.raises(SecateurError, match="does not load"):
        _ = secateur.open_model(model).tokenizer


def test_a_live_model_still_takes_its_tokenizer(text_file: Path) -> None:
    settings = {"calibration": str(text_file), "samples": 4, "length": 16, "align": 1}
    live: nn.Module = tiny_model()
    done = secateur.prune(live, tokenizer=tiny_tokenizer(), evaluate="none", **settings)  # type: ignore[arg-type]
    assert done.numbers["removed_share"] > 0


def test_an_unknown_argument_is_told_with_the_one_that_was_meant() -> None:
    with pytest.raises(ArgumentError, match=r"'prompt'.*Did you mean 'prompts'\?"):
        secateur.evaluate("a", prompt="b")  # type: ignore[call-arg]


def test_a_result_is_shown_in_one_line(text_file: Path) -> None:
    settings = {"calibration": str(text_file), "samples": 4, "length": 16, "align": 1}
    live: nn.Module = tiny_model()
    done = secateur.prune(live, tokenizer=tiny_tokenizer(), evaluate="none", **settings)  # type: ignore[arg-type]
    share = done.numbers["removed_share"]
    assert f"by best, {share:.1%} of" in repr(done)
    assert len(repr(done)) < 200


def test_arguments_are_checked_where_they_are_given_by_position() -> None:
    with pytest.raises(ArgumentError, match=r"prune.model, out"):
        secateur.prune("a", "b")  # type: ignore[misc]
