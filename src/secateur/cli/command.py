"""A command whose --help shows in groups what most people need; --help-all shows everything."""

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from .screen import say

# By title, names of the options that --help shows, and of those that --help-all shows besides.
Groups = Mapping[str, tuple[str, str]]

# Of every list of names below the options, what each name stands for; see `_about`.
Lists = Mapping[str, Mapping[str, Any]]

_ALL = "secateur.help_all"
_REST = "Other options"
# Columns with the names of options, of --help and of --help-all.
_NARROW, _WIDE = 22, 24


class Command(click.Command):
    """A command with `groups` of options, and `lists` of the names that they take.

    Of the lists, --help shows those in `first` alone. Options in `renamed` are taken for one
    version under the names that they had, with a note.
    """

    def __init__(
        self,
        *args: Any,
        groups: Groups | None = None,
        lists: Lists | None = None,
        first: tuple[str, ...] = (),
        renamed: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._groups, self._lists, self._first = groups or {}, lists or {}, first
        self._renamed = renamed or {}
        deep = {name for group in self._groups.values() for name in group[1].split()}
        self._deep = deep & {param.name for param in self.params}
        if self._deep:
            self.params.append(_help_all())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take options by the names that they had."""
        return super().parse_args(ctx, [self._now(word) for word in args])

    def _now(self, word: str) -> str:
        old, given, value = word.partition("=")
        if old not in self._renamed:
            return word
        say(f"Note: {old} is now {self._renamed[old]}", error=True)
        return self._renamed[old] + given + value

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options group by group, then what the names stand for."""
        everything = bool(ctx.meta.get(_ALL)) or not self._groups
        column = _WIDE if everything else _NARROW
        for title, shown, hidden in self._grouped(ctx, everything):
            with formatter.section(title):
                if shown:
                    formatter.write_dl([_row(one, ctx, column) for one in shown], column)
                if hidden:
                    _write_also(formatter, [one.opts[0] for one in hidden])
        for title, names in self._lists.items():
            if everything or title in self._first:
                with formatter.section(title):
                    _write_names(formatter, names, everything)

    def _grouped(
        self, ctx: click.Context, everything: bool
    ) -> Iterator[tuple[str, list[click.Option], list[click.Option]]]:
        """Of each group its title, the options that are shown, and those that are not."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        left = {str(one.name): one for one in options if not one.hidden}
        for title, (common, deep) in self._groups.items():
            here = [left.pop(name) for name in f"{common} {deep}".split() if name in left]
            hidden = [one for one in here if one.name in self._deep and not everything]
            if here:
                yield title, [one for one in here if one not in hidden], hidden
        yield _REST if self._groups else "Options", list(left.values()), []


def _help_all() -> click.Option:
    def show(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            ctx.meta[_ALL] = True
            click.echo(ctx.get_help())
            ctx.exit()

    return click.Option(
        ["--help-all"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Show all options, and what the names stand for",
    )


def _row(option: click.Option, ctx: click.Context, column: int) -> tuple[str, str]:
    """An option and its help; the name fills the column, so that groups line up."""
    name, about = option.get_help_record(ctx) or ("", "")
    name = re.sub(r"--([\w-]+) / --no-\1", r"--[no-]\1" if column == _WIDE else r"--\1", name)
    return name.ljust(column), about


def _write_also(formatter: click.HelpFormatter, names: Sequence[str]) -> None:
    """Names of options that --help-all explains."""
    _write_line(formatter, f"Also {', '.join(names)}")


def _write_line(formatter: click.HelpFormatter, text: str) -> None:
    """Text in lines that break at spaces: click would break names at their hyphens."""
    indent = " " * formatter.current_indent
    lines = textwrap.wrap(text, formatter.width - len(indent), break_on_hyphens=False)
    formatter.write("".join(f"{indent}{line}\n" for line in lines))


def _write_names(
    formatter: click.HelpFormatter, names: Mapping[str, Any], everything: bool
) -> None:
    """What each of the names stands for, if known; in one line unless `everything` is wanted."""
    left = formatter.width - formatter.current_indent - max(map(len, names)) - 2
    rows = [(name, _about(one)) for name, one in names.items()]
    if not any(about for _, about in rows):
        _write_line(formatter, ", ".join(names))
        return
    if not everything:
        rows = [(name, textwrap.shorten(about, left, placeholder=" ...")) for name, about in rows]
    formatter.write_dl(rows)


def _about(one: Any) -> str:
    """What a registry says of an entry: its summary, or the first line of its docstring."""
    if isinstance(one, str):
        return one
    if hasattr(one, "summary"):
        scale = f" Scale: {one.scale}." if getattr(one, "scale", None) else ""
        return f"{one.summary}{scale}"
    return (inspect.getdoc(one) or "").split("\n")[0]
