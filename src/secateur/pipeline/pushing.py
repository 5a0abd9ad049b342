"""What a run writes goes to the hub as well, once it is whole."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ..errors import SecateurError
from ..models import check_upload, upload
from ..progress import note
from ..ranks import by_first

# A setting or a text that a record names by its place on this machine.
_PLACE = re.compile(r'[=:] "(?:[/~\\]|\.{1,2}[/\\]|[A-Za-z]:\\)')
_RECORDS = ("run.toml", "recovery.toml", "conversion.toml", "plan.json")


def pushing(name: str | None, out: Path | None, *, private: bool) -> AbstractContextManager[None]:
    """Upload the folder `out` to `name` after what is done inside, if there is a name.

    Whether it can be uploaded is looked at first. What is inside raises leaves the hub as it is.

    Raises:
        SecateurError: it cannot be, or in the end it was not: the folder is whole all the same.
    """
    return by_first("hub", lambda: _pushing(name, out, private=private))


@contextmanager
def _pushing(name: str | None, out: Path | None, *, private: bool) -> Iterator[None]:
    if name is None:
        if private:
            raise SecateurError("--private is for an upload.\nAdd --push-to-hub OWNER/NAME")
        yield
        return
    if out is None:
        raise SecateurError(
            "--push-to-hub uploads the folder of a model, and none is written.\nAdd --out DIR, and"
            " leave --dry-run away"
        )
    check_upload(name, private=private)
    yield
    if named := [one for one in _RECORDS if _names_places(out / one)]:
        note(f"{' and '.join(named)} go to the hub with paths of this machine, as they were typed")
    note(f"uploaded to {upload(out, name, private=private)}")


def _names_places(record: Path) -> bool:
    return record.is_file() and bool(_PLACE.search(record.read_text(encoding="utf-8")))
