"""Text that came from outside, made fit to be seen: no character moves the cursor or hides."""

import unicodedata

# Control characters, invisible format ones (they turn the direction of text), lone surrogates.
_HIDDEN = ("Cc", "Cf", "Cs")


def printable(text: str) -> str:
    """`text` with what a terminal would obey, hide or refuse written as its escape; lines stay."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(map(_seen, text))


def one_line(text: str) -> str:
    """The same, ends of lines too: a name in a table or in the middle of a sentence."""
    return printable(text).replace("\n", "\\n")


def _seen(character: str) -> str:
    hidden = unicodedata.category(character) in _HIDDEN
    # U+200C and U+200D join the letters of names in many scripts.
    if not hidden or character in "\n\u200c\u200d":
        return character
    return character.encode("unicode_escape").decode("ascii")
