"""The registry of fusions. A fusion's parameter names are the list of what it needs.

| parameter | what it is |
|---|---|
| `scopes` | the scores of every scope, a `Scope` by axis name |
| `probe` | what the loss is when units are masked: see `Probe` |
| `generator` | random numbers, seeded by the run |
| keyword-only, with a default | a setting of the fusion |

A scope is the units of one kind in one layer. Which scores it must hold stands in `needs`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import SecateurError
from ..registry import Function, Registered, choose, entered

# Masks [probe, unit] by axis name, True where a unit is masked (axes not named stay whole), to the
# loss of each probe, [probe]. The losses are of samples that the scores have not seen.
Probe = Callable[[Mapping[str, Bool[Tensor, "probe _"]]], Float[Tensor, " probe"]]


@dataclass(frozen=True)
class Scope:
    """Coarse and fine scores of one scope's units, and the same for each calibration sample."""

    coarse: Float[Tensor, " unit"] | None = None
    fine: Float[Tensor, " unit"] | None = None
    coarse_by_sample: Float[Tensor, "sample unit"] | None = None
    fine_by_sample: Float[Tensor, "sample unit"] | None = None

    def pair(self) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
        """The two scores, fp64, of a scope that has both."""
        assert self.coarse is not None
        assert self.fine is not None
        return self.coarse.double(), self.fine.double()

    def pair_by_sample(self) -> tuple[Float[Tensor, "sample unit"], Float[Tensor, "sample unit"]]:
        """The two scores by sample, fp64, of a scope that has both."""
        assert self.coarse_by_sample is not None
        assert self.fine_by_sample is not None
        return self.coarse_by_sample.double(), self.fine_by_sample.double()


@dataclass(frozen=True)
class Fused:
    """One score a unit, fp32; larger means keep.

    `alpha` is the share that the coarse and the fine score have in the mean score of the scope;
    `scale` times `scores` compares across scopes, up to one factor for all; `by_sample` are the
    scores for each calibration sample, where both granularities came with them.
    """

    scores: Float[Tensor, " unit"]
    alpha: Float[Tensor, "2"]
    scale: float = 1.0
    by_sample: Float[Tensor, "sample unit"] | None = None


@dataclass(frozen=True, slots=True)
class Fusion(Registered):
    """A way to make one score of two; `needs` are the fields of `Scope` that must be there."""

    samples: int

    @property
    def asks(self) -> tuple[str, ...]:
        """What the function takes besides the scopes and its settings: `probe`, `generator`."""
        known = inspect.signature(self.function).parameters
        return tuple(name for name in ("probe", "generator") if name in known)

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the function's settings."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


FUSIONS: dict[str, Fusion] = {}

BOTH = ("coarse", "fine")
BY_SAMPLE = (*BOTH, "coarse_by_sample", "fine_by_sample")


def fusion(
    name: str, *, paper: str, needs: tuple[str, ...] = BOTH, samples: int = 2
) -> Callable[[Function], Function]:
    """Register the decorated function; `samples` is how many it needs of scores by sample."""
    return entered("fusion", name, FUSIONS, lambda f, _: Fusion(name, f, paper, needs, samples))


def fuse(
    name: str,
    scopes: Mapping[str, Scope],
    *,
    probe: Probe | None = None,
    seed: int = 0,
    **settings: Any,
) -> dict[str, Fused]:
    """Fuse the scores of all scopes by the fusion `name`.

    Raises:
        SecateurError: no such fusion or setting, or it needs something that was not given.
    """
    chosen = choose("fusion", name, FUSIONS)
    for setting in settings:
        choose(f"setting of the fusion {name!r}:", setting, dict.fromkeys(chosen.settings))
    for axis, scope in scopes.items():
        _check(chosen, axis, scope)
    given: dict[str, Any] = {"generator": torch.Generator().manual_seed(seed), "probe": probe}
    if "probe" in chosen.asks and probe is None:
        raise SecateurError(
            f"The fusion {name!r} asks what the loss is when units are masked; give it a probe.\n"
            "Without one: split_half, mean, homoscedastic."
        )
    asked = {key: given[key] for key in chosen.asks}
    fused = chosen.called(f"The fusion {name!r} fails", scopes, **asked, **settings)
    if not isinstance(fused, dict) or not all(isinstance(fused.get(one), Fused) for one in scopes):
        raise SecateurError(
            f"The fusion {name!r} returned {type(fused).__name__}; expected a dict with a Fused"
            " for each scope."
        )
    return fused


def _check(chosen: Fusion, axis: str, scope: Scope) -> None:
    for field in BY_SAMPLE:
        scores: Tensor | None = getattr(scope, field)
        if scores is None:
            if field in chosen.needs:
                _refuse_missing(chosen.name, field, axis)
            continue
        if not torch.isfinite(scores).all():
            raise SecateurError(
                f"The {field.replace('_', ' ')} scores of {axis} are NaN or infinite: try --dtype"
                " float32."
            )
        if field in chosen.needs and field.endswith("by_sample") and len(scores) < chosen.samples:
            raise SecateurError(
                f"The fusion {chosen.name!r} needs scores of at least {chosen.samples} calibration"
                f" samples; {axis} has {len(scores)}.\nType --samples {chosen.samples} or more."
            )


def _refuse_missing(name: str, field: str, axis: str) -> None:
    what = field.removesuffix("_by_sample")
    by_sample = " for each calibration sample" if field.endswith("_by_sample") else ""
    others = [
        other.name for other in FUSIONS.values() if field not in other.needs and other.name != name
    ]
    raise SecateurError(
        f"The fusion {name!r} needs the {what} scores of {axis}{by_sample}; they were not given.\n"
        f"Without them: {', '.join(others)}."
    )
