"""What a run gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import PruneConfig
from ..errors import SecateurError
from ..export import Form
from ..models import filled, load
from ..progress import Told
from ..structure import Plan, Structure
from .subject import Subject


@dataclass(frozen=True)
class Result:
    """What a run made: the plan, the numbers, and where the folder is (None: nothing written)."""

    config: PruneConfig
    structure: Structure
    plan: Plan
    numbers: Mapping[str, Any]
    seconds: Mapping[str, float]
    form: Form | None = None
    out: Path | None = None
    notes: Sequence[str] = ()

    def __repr__(self) -> str:  # the plan and the structure alone have pages
        share = self.numbers.get("removed_share")
        went = "" if share is None else f", {share:.1%} of the linears' parameters removed"
        place = "nothing written" if self.out is None else f"in {self.out}"
        return (
            f"<{type(self).__name__} of {self.config.model} by {self.config.method}{went}: {place}>"
        )

    @classmethod
    def of(
        cls,
        subject: Subject,
        plan: Plan,
        numbers: Mapping[str, Any],
        told: Told,
        form: Form | None,
        out: Path | None,
    ) -> "Result":
        """What was made of a subject, and what was told on the way."""
        notes = tuple(told.notes)
        return cls(subject.config, subject.structure, plan, numbers, told.seconds, form, out, notes)

    def load(self) -> Any:
        """The pruned model, ready for `generate`: from the folder, or built in memory.

        Raises:
            SecateurError: it was a dry run.
        """
        if self.out is not None:
            return load(self.out)
        if self.form is None:
            raise SecateurError("A dry run makes no model. Run it without dry_run.")
        return filled(self.form.empty(), self.form.weights)

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors, for `--json`."""
        return {
            "out": str(self.out) if self.out else None,
            "settings": self.config.model_dump(),
            "results": dict(self.numbers),
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
            "kept": {axis.name: len(self.plan.kept(axis)) for axis in self.structure.axes},
        }
