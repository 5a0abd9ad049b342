"""What a run is about: an open model and the settings in force."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ..budgets import Budget
from ..checkpoint import Store
from ..config import PruneConfig
from ..export import proved
from ..models import LIVE, OpenModel, StreamedModel, dtype_name, open_model, resolve_device
from ..progress import note
from ..search import Limits
from ..structure import Axis, Structure
from .budgeting import budget_of
from .checks import reading_notes, selected
from .choice import limits_of
from .idle import idle_settings
from .profiled import profiled
from .scoring import fine_axes
from .stock import keep_to_stock


@dataclass(frozen=True)
class Subject:
    """An open model, the settings in force, and the dense model one layer at a time.

    `given` is the model as it was named, or the live module; `tokenizer` one that was handed over
    in the place of the folder's. What passes find is kept in `store`, if there is one. `asks` makes
    the budget once: one of time is measured. `varied` are parts of the method that the settings do
    not name: the method `best` chooses them.
    """

    given: str | Path | nn.Module
    tokenizer: Any
    opened: OpenModel
    config: PruneConfig
    source: StreamedModel
    store: Store | None = None
    asks: Callable[[], Budget] | None = None
    varied: tuple[str, ...] = ()

    @property
    def settled(self) -> PruneConfig:
        """The settings in force, with the dtype that `auto` came to on this machine.

        It stays `auto` where time is the budget: that is measured in the dtype of the weights.
        """
        if self.config.budget_timed:
            return self.config
        return self.config.model_copy(update={"dtype": dtype_name(self.source.dtype)})

    @property
    def recorded(self) -> PruneConfig:
        """The settings that repeat the run."""
        return self.settled.model_copy(update=dict.fromkeys(self.varied))

    @property
    def budget(self) -> Budget:
        """What may stay, in the currency that the settings name."""
        if self.asks is None:
            return budget_of(self.opened, self.structure, self.config)
        return self.asks()

    @cached_property
    def structure(self) -> Structure:
        """The axes of the granularities in force."""
        return selected(self.opened, self.config.granularity)

    @cached_property
    def scored(self) -> list[Axis]:
        """The axes that scores are of: a coarse unit's score is made of theirs."""
        limits = limits_of(self.structure, self.config)
        return fine_axes(self.structure, self.opened.structures, limits)

    @property
    def everywhere(self) -> list[Axis]:
        """The same of all layers, whichever may lose units."""
        return fine_axes(self.structure, self.opened.structures, Limits())

    def under(self, **settings: Any) -> "Subject":
        """The same model with some settings changed."""
        return replace(self, config=self.config.model_copy(update=settings))

    def keeping(self, store: Store | None) -> "Subject":
        """The same model; what passes find is kept."""
        return replace(self, store=store)

    def asked(self, config: PruneConfig) -> "Subject":
        """The same model under other settings, on the same device.

        Raises:
            SecateurError: --stock or --profile, and no plan of the kind that is asked for goes with
                it.
        """
        config = config.model_copy(update={"device": self.config.device})
        config = profiled(self.opened, config)
        plain = replace(self, config=config, asks=None)
        other = replace(plain, asks=cache(lambda: plain.budget))
        if not config.stock:
            return other
        stock = keep_to_stock(self.opened, other.structure, config, other.asks)
        return replace(other, config=stock)


def open_subject(
    model: str | Path | nn.Module, config: PruneConfig, tokenizer: Any = None
) -> Subject:
    """Open the model that the settings are about, and tell what there is to know of it.

    Whether they go with it, `Subject.asked` finds out.

    Raises:
        SecateurError: as `open_model`, or settings that do not go with the model.
    """
    opened = open_model(model, **config.reading)
    for message in (*opened.notes, *reading_notes(opened, config), *idle_settings(config)):
        note(message)
    if opened.packed:
        note(
            "the weights are in few bits, and are written in floating point; after the cut,"
            " secateur recover --recipe groupwise writes few bits"
        )
    config = config.model_copy(update={"device": str(resolve_device(config.device))})
    if not opened.declared:
        opened, _ = proved(opened)
        note(
            f"nobody declared the layout of {opened.config.model_type!r}: its coupled structures"
            " were traced from its code, and hold on a small model of it"
        )
        for left in opened.left:
            note(f"{left.module} stays whole: {left.reason}")
    source = opened.streamed(**config.machine)
    return Subject(model, tokenizer, opened, config, source)


def name_of(model: str | Path | nn.Module) -> str:
    """The model's name in the settings."""
    return LIVE if isinstance(model, nn.Module) else str(model)
