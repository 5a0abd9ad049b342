"""Looks for broken links in a folder of HTML pages, and for what a page fetches from elsewhere.

    python scripts/check_site.py build/site

A link is broken if its file is not in the folder, or nothing in that file has the name after `#`.
Links to other sites are not followed. Prints what is broken, and ends with 1 if anything is.
"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself; of <link>, what only names a page is no fetching.
FETCHED = {"script", "img", "iframe", "link", "source", "audio", "video"}
NAMED = {"canonical", "prev", "next", "author", "license"}


class Page(HTMLParser):
    """The names that a page can be entered by, and the addresses in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = {""}
        self.links: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the id, or the name, and the address of an element."""
        found = {key: value or "" for key, value in attrs}
        self.names |= {found[key] for key in ("id", "name") if key in found}
        fetched = tag in FETCHED and found.get("rel") not in NAMED
        for key in ("href", "src"):
            if key in found:
                self.links.append((found[key], tag if fetched else ""))


def broken(site: Path) -> Iterator[str]:
    """A line for each broken link of the pages in `site`, and for each thing fetched elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        here = path.relative_to(site)
        for address, fetched in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if fetched and parts.scheme != "data":
                    yield f"{here}: <{fetched}> fetches {address}"
                continue
            root = site if parts.path.startswith("/") else path.parent
            target = (root / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                yield f"{here}: {address}: there is no such file"
            elif target in pages and unquote(parts.fragment) not in pages[target].names:
                yield f"{here}: {address}: there is no such place in it"


if __name__ == "__main__":
    wrong = list(broken(Path(sys.argv[1]).resolve()))
    print("\n".join(wrong) or "No link is broken.")
    sys.exit(bool(wrong))
