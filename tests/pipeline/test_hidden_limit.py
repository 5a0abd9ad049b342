"""`hidden_gib` holds in every pass: what is over it lies in files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.stats.activations import Activations


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Activations]:
    """All hidden states that come to be."""
    states: list[Activations] = []
    start = Activations.__init__

    def noted(self: Activations, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        states.append(self)

    monkeypatch.setattr(Activations, "__init__", noted)
    return states


@pytest.mark.parametrize(
    "method",
    [
        {"method": "flap"},
        {"method": "llm-pruner"},
        {"method": "hywia"},
        {"method": "magnitude", "repair": "refit"},
        {"granularity": "layer", "repair": "refit", "ratio": 0.4},
        {"method": "magnitude", "recover": True},
    ],
)
def test_with_none_allowed_all_hidden_states_lie_in_files(
    method: dict[str, Any],
    made: list[Activations],
    tiny_folder: Callable[..., Path],
    text_file: Path,
    tmp_path: Path,
) -> None:
    recovers = method.pop("recover", False)
    shared: dict[str, Any] = {"length": 16, "hidden_gib": 0.0, "evaluate_tokens": 256}
    secateur.prune(
        tiny_folder(),
        **{"ratio": 0.3, **method, **shared},
        samples=16,
        calibration=str(text_file),
        out=tmp_path / "small",
    )
    if recovers:
        made.clear()
        secateur.recover(
            tmp_path / "small",
            recipe="distil",
            data=str(text_file),
            steps=1,
            **shared,
            out=tmp_path / "better",
        )
    assert made
    assert all(states.mapped for states in made)


def test_evaluate_has_the_limit_too(
    tiny_folder: Any, text_file: Path, made: list[Activations]
) -> None:
    for gib, mapped in ((4.0, False), (0.0, True)):
        made.clear()
        secateur.evaluate(tiny_folder(), str(text_file), evaluate_tokens=200, hidden_gib=gib)
        assert {states.mapped for states in made} == {mapped}
