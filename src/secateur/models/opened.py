"""A model that was opened: its config, weights on demand and layout, and where it came from."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arguments import is_panic
from ..checkpoint import Packed, View, crc, weight_files
from ..device_memory import Room
from ..errors import SecateurError
from ..structure import Structure
from .adapters import Adapter
from .devices import computing_dtype, resolve_device
from .families import Family
from .hub import hub_name, is_hub_name
from .inputs import Outer, has_tokenizer, tokenizer_of
from .left import LeftWhole, left_whole
from .streamed import StreamedModel, empty_model, filled
from .structures import structure_of

# Files that decide what a model computes.
_READ = (".safetensors", ".gguf", ".json")


def _stands(stat: os.stat_result) -> tuple[int, ...]:
    """By what a file is known without reading it."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@dataclass(frozen=True)
class OpenModel:
    """A causal LM whose weights are read on demand.

    `raw_config` is config.json as it stands, `config` transformers' reading of it. `folder` is
    None for a live module. The layout of the family is `declared`, or else it was traced.
    A checkpoint that an `adapter` reads as another family's has that one's config and names; one
    whose linears are packed in few bits is read as the floating-point one that it stands for, and
    `codes` has them as they are stored, by the names of their weights.
    `made` says what else was done to the weights while they were read. A decoder inside a
    multimodal model has that one `around` it. `read` are other places that something came from.
    """

    source: str
    folder: Path | None
    raw_config: Mapping[str, Any]
    config: Any
    weights: View
    family: Family
    declared: bool = True
    adapter: Adapter | None = None
    codes: Mapping[str, Callable[[], Packed]] = field(default_factory=dict)
    made: str = ""
    around: Outer | None = None
    read: tuple[Path, ...] = ()
    own_tokenizer: Callable[[], Any] | None = None

    @property
    def packed(self) -> bool:
        """Whether linears are packed in few bits."""
        return bool(self.codes)

    @property
    def notes(self) -> tuple[str, ...]:
        """For the user: what of the checkpoint was read, and what was not."""
        return self.weights.notes

    @property
    def hub_name(self) -> str | None:
        """What the model is called on the hub, as far as the place that it came from says so."""
        if self.folder is not None:
            return hub_name(self.folder)
        stated = str(getattr(self.config, "_name_or_path", ""))
        return stated if is_hub_name(stated) and "/" in stated else None

    @property
    def name(self) -> str:
        """What people call the model: its name on the hub, or that of its folder."""
        if self.hub_name is not None:
            return self.hub_name
        return self.source if self.folder is None else Path(self.source).resolve().name

    @property
    def companions(self) -> Path | None:
        """The folder whose other files (licence, generation config) belong to the model."""
        return self.folder if self.folder is not None and self.folder.is_dir() else None

    @property
    def writes_tokenizer(self) -> bool:
        """Whether the tokenizer files of that folder, if it has any, are not the model's."""
        return self.adapter is not None or self.own_tokenizer is not None

    @property
    def rewritten(self) -> bool:
        """Whether the tensors differ from those in any folder."""
        return self.adapter is not None or self.packed or bool(self.made)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model on the meta device, in the checkpoint's dtype."""
        return empty_model(self.config, self.dtype)

    @cached_property
    def structures(self) -> Structure:
        """The coupled structures that can be pruned, of every granularity."""
        return structure_of(self.family, self.skeleton, self.weights)

    @cached_property
    def structure(self) -> Structure:
        """The coupled structures of the default granularities."""
        return self.structures.select()

    @cached_property
    def identity(self) -> str:
        """A hash of config and weights: of files by size and time, of all values of a live model.

        The same model elsewhere, or touched since, has another.
        """
        parts = hashlib.sha256(json.dumps(self.raw_config, default=str, sort_keys=True).encode())
        around = self.around.architecture if self.around is not None else ""
        parts.update(f"{self.made} {around} {self.structure.weights}".encode())
        for place in (self.folder, *self.read) if self.folder is not None else ():
            files = {*place.glob("[!.]*")} if place.is_dir() else {place}
            with suppress(SecateurError):  # none that are listed: GGUF
                files |= set(weight_files(place)[0])
            found = (file for file in sorted(files) if file.suffix in _READ and file.is_file())
            parts.update(repr([(str(f), *_stands(f.stat())) for f in found]).encode())
        for name in self.weights.specs if self.folder is None else ():
            data = self.weights.tensor(name).detach().cpu().contiguous().flatten()
            parts.update(name.encode() + data.view(torch.uint8).numpy().data)
        return parts.hexdigest()

    @cached_property
    def content(self) -> str:
        """A hash of all weights, wherever they lie: every one is read for it."""
        parts = hashlib.sha256()
        for name, spec in sorted(self.weights.specs.items()):
            parts.update(
                f"{name} {spec.dtype} {spec.shape} {crc(self.weights.tensor(name))}".encode()
            )
        return parts.hexdigest()

    @cached_property
    def left(self) -> tuple[LeftWhole, ...]:
        """What of the layers loses nothing, and why; nothing of a declared family."""
        if self.declared:
            return ()
        shapes = {name: spec.shape for name, spec in self.weights.specs.items()}
        return left_whole(self.family, self.structures, shapes)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the config states, or else that of the first weight (none: fp32)."""
        stated = getattr(self.config, "dtype", None)
        if isinstance(stated, torch.dtype):
            return stated
        return next((spec.dtype for spec in self.weights.specs.values()), torch.float32)

    @property
    def context(self) -> int:
        """The longest window, in tokens, that the model allows (2048 if the config says none)."""
        names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
        stated = (getattr(self.config, name, None) for name in names)
        return int(next((length for length in stated if length), 2048))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the folder.

        Raises:
            SecateurError: there is none (or the model is a live module).
        """
        if self.folder is None:
            raise SecateurError("A live model has no tokenizer: pass tokenizer=...")
        if self.own_tokenizer is None and not has_tokenizer(self.folder):
            raise SecateurError(
                f"{self.folder} has no tokenizer (tokenizer.json or tokenizer.model), and"
                " calibration text needs one.\nCopy the tokenizer files of the original model into"
                " the folder."
            )
        try:
            found = (
                self.own_tokenizer()
                if self.own_tokenizer is not None
                else tokenizer_of(self.folder)
                if self.adapter is None
                else self.adapter.tokenizer(self.folder)
            )
            found("Some text.", verbose=False)  # what is wrong with it shows now, not in mid-work
        except SecateurError:
            raise
        except BaseException as error:  # tokenizers raises bare ones, and panics
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise SecateurError(
                f"The tokenizer in {self.folder} does not load:"
                f" {type(error).__name__}, {(str(error).splitlines() or [''])[0]}\n"
                "Copy the tokenizer files of the original model into the folder again."
            ) from error
        return found

    def whole(self, dtype: torch.dtype) -> Any:
        """The model with all its weights in memory, in `dtype`; packed ones as they stand for."""
        return filled(empty_model(self.config, dtype), self.weights, dtype)

    def streamed(
        self,
        *,
        device: str = "auto",
        dtype: str = "auto",
        resident: str = "auto",
        device_gib: float | None = None,
    ) -> StreamedModel:
        """The model for the streaming pass, computing in `dtype` (see `computing_dtype`).

        `resident` and `device_gib` (for hidden states) are the settings of these names.

        Raises:
            SecateurError: its weights are to be resident, and the device has no room for them.
        """
        place = resolve_device(device)
        model = empty_model(self.config, computing_dtype(dtype, self.dtype, place))
        source = StreamedModel(
            model,
            self.family,
            self.weights,
            place,
            lambda: self.identity,
            self.name,
            resident=resident,
            room=Room(place, device_gib),
        )
        if resident == "yes" and not source.supply.keeps:
            raise SecateurError(
                f"The weights of {self.name} do not fit into the memory that {place} has free.\n"
                "Type: --resident no"
            )
        return source
