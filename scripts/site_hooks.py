"""What mkdocs.yml cannot say: pages of a folder, and tables that are made of the code."""

import re
from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Fill the entry `Decisions` of the navigation: the pages of docs/decisions, by number."""
    pages = Path(config["docs_dir"], "decisions").glob("*.md")
    names = [f"decisions/{page.name}" for page in sorted(pages)]
    for section in config["nav"]:
        for entries in section.values():
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and "Decisions" in entry:
                    entry["Decisions"] = names
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a table of settings where a page says `<!-- settings: CLASS -->`."""
    return re.sub(r"<!-- settings: (\w+) -->", lambda found: settings_table(found[1]), markdown)


def settings_table(name: str) -> str:
    """The fields of a class of `secateur.config`: name, default, and what the help says of each."""
    import secateur.config

    fields = getattr(secateur.config, name).model_fields
    rows = [
        f"| `{field}` | {'' if one.is_required() else f'`{one.default!r}`'} | {one.description} |"
        for field, one in fields.items()
        if field != "model"
    ]
    return "\n".join(["| setting | default | what it is |", "|---|---|---|", *rows])
