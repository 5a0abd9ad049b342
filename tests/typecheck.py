"""The run-time checker of the tests: an int is a float, as PEP 484 has it."""

from importlib.util import find_spec
from pathlib import Path

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def shaped_modules() -> list[str]:
    """The modules whose signatures state shapes; types alone are mypy's, and cost no test time."""
    spec = find_spec("secateur")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    return [
        ".".join(("secateur", *file.relative_to(package).with_suffix("").parts))
        for file in sorted(package.rglob("*.py"))
        if "from jaxtyping import" in file.read_text(encoding="utf-8")
    ]
