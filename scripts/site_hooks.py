"""What mkdocs.yml cannot say: the pages of docs/decisions are its list of decisions."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Fill the entry `Decisions` of the navigation, in the order of their numbers."""
    pages = Path(config["docs_dir"], "decisions").glob("*.md")
    names = [f"decisions/{page.name}" for page in sorted(pages)]
    for section in config["nav"]:
        for entries in section.values():
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and "Decisions" in entry:
                    entry["Decisions"] = names
    return config
