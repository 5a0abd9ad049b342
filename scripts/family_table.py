"""Every causal model type of transformers, from its default config: what is pruned, what is not.

Writes docs/families.md. Each type runs in a process of its own, so that none can harm the others.
"""

import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
OUTCOMES = {
    "declared": "its layout is declared, and holds",
    "traced": "its layout is traced, and holds",
    "encoder": "an encoder, or the decoder of an encoder-decoder model, by its default config",
    "composite": "several models in one: its text decoder is a type of its own",
    "no default": "transformers builds no model from its default config",
    "refused": "a decoder that is not taken",
    "crashed": "a fault of this package",
}
_MEMORY, _SECONDS = 12_000_000_000, 90


@dataclass(frozen=True)
class Row:
    """What `discover` says of one type; `seconds` of processor time are not written down."""

    model_type: str
    outcome: str
    says: str
    seconds: float = 0.0

    def line(self) -> str:
        """A line of the table."""
        return f"| `{self.model_type}` | {self.outcome} | {self.says} |\n"


def causal_types() -> dict[str, str]:
    """By model type, the name of its causal class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    return {kind: name if isinstance(name, str) else name[0] for kind, name in NAMES.items()}


def row(model_type: str) -> Row:
    """Discover the structures of a type's default config."""
    import transformers

    from secateur.errors import SecateurError
    from secateur.pipeline import discover

    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = transformers.AutoConfig.for_model(model_type)
            config.architectures = [causal_types()[model_type]]
            raw = json.loads(config.to_json_string(use_diff=False)) | {"model_type": model_type}
        except Exception as error:
            return Row(model_type, "no default", _plain(str(error)))
        (Path(folder) / "config.json").write_text(json.dumps(raw))
        inner = getattr(getattr(config, "text_config", None), "model_type", None)
        try:
            found = discover(folder)
        except SecateurError as error:
            says = _plain(str(error).replace(f"{folder}/", "").replace(folder, "it"))
            kind = "composite" if inner else _kind(says)
            return Row(model_type, kind, says, time.process_time() - start)
        except Exception as error:
            says = f"{type(error).__name__}: {_plain(str(error))}"
            return Row(model_type, "crashed", says, time.process_time() - start)
    units = {axis.granularity: None for axis in found.structure.axes}
    says = ", ".join(f"`{name}`" for name in units)
    reasons: dict[str, list[str]] = {}
    for left in found.left:
        reasons.setdefault(left.reason, []).append(f"`{left.module}`")
    for reason, modules in reasons.items():
        says += f"; whole: {', '.join(dict.fromkeys(modules))} ({reason})"
    outcome = "declared" if found.opened.declared else "traced"
    if inner:
        outcome, says = "composite", f"its text decoder, `{inner}`: {says}"
    return Row(model_type, outcome, says, time.process_time() - start)


def _plain(message: str) -> str:
    return " ".join((message.splitlines() or [""])[0].split()).replace("|", "/")


def _kind(says: str) -> str:
    if "is an encoder" in says or "an encoder with a decoder" in says:
        return "encoder"
    if "ForConditionalGeneration" in says or "text_config" in says:
        return "composite"
    nothing = "builds no model" in says or "does not make sense" in says
    return "no default" if nothing else "refused"


def apart(model_type: str) -> Row:
    """As `row`, in a process of its own."""
    import resource

    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(writer, json.dumps(asdict(row(model_type))).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    if not text:
        return Row(model_type, "crashed", "takes too long or too much memory", _SECONDS)
    return Row(**json.loads(text))


def page(rows: Iterable[Row]) -> str:
    """The page as Markdown."""
    import transformers

    rows = list(rows)
    counts = Counter(row.outcome for row in rows)
    decoders = sum(counts[name] for name in ("declared", "traced", "refused", "crashed"))
    taken = counts["declared"] + counts["traced"]
    outcomes = "".join(
        f"| {name} | {counts[name]} | {what} |\n" for name, what in OUTCOMES.items() if counts[name]
    )
    return (
        "# Families\n\n"
        f"All {len(rows)} causal model types of transformers {transformers.__version__}, each from"
        f" its default config. Of {decoders} decoders {taken} are pruned"
        f" ({taken / max(decoders, 1):.0%}): slicing equals masking on a small model, or they are"
        " refused. `scripts/family-table` writes this page; [structures.md](structures.md) says"
        " how structures are found.\n\n"
        "What is *whole* loses nothing. A config that is not the default may fare otherwise:"
        " `secateur discover` says what holds of it.\n\n"
        f"| outcome | types | meaning |\n| --- | --- | --- |\n{outcomes}\n"
        "| model_type | outcome | units, or why not |\n| --- | --- | --- |\n"
        + "".join(row.line() for row in rows)
    )


def main() -> None:
    """Write the page, or print the rows of the types that are named."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    warnings.filterwarnings("ignore")
    import torch

    import secateur.pipeline  # noqa: F401  (once, before the processes part)

    torch.set_num_threads(1)
    rows = []
    for kind in sys.argv[1:] or causal_types():
        rows.append(apart(kind))
        print(f"{rows[-1].seconds:5.1f} s {rows[-1].line()}", end="", flush=True)
    print(dict(Counter(row.outcome for row in rows)))
    if not sys.argv[1:]:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
