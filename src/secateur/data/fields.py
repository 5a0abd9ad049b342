"""What is text in a row: a field by its name, a conversation, or a prompt with its response."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SecateurError

TEXTS = ("text", "content")
CHATS = ("messages", "conversations", "conversation")
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)

# Who speaks, in the words of ShareGPT and in those of chat templates.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "function": "tool"}

_NO_CHARACTER = re.compile("[\ud800-\udfff\0]")

_EXPECTED = 'expected an object like {"text": "..."}'


def lowered(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row by the names of its fields in small letters (`TEXT` is `text`)."""
    return {str(name).lower(): value for name, value in row.items()}


def is_row(row: Mapping[Any, Any]) -> bool:
    """Whether an object has text in it that is known by its name."""
    fields = lowered(row)
    return (
        any(isinstance(fields.get(name), str) for name in TEXTS)
        or any(_is_chat(fields.get(name)) for name in CHATS)
        or pair_of(row) is not None
    )


def pair_of(row: Any) -> tuple[str, str] | None:
    """Prompt and response of a row that has both, in Alpaca's words if it has an instruction."""
    if not isinstance(row, Mapping):
        return None
    fields = lowered(row)
    for ask, answer in PAIRS:
        asked, answered = fields.get(ask), fields.get(answer)
        if isinstance(asked, str) and isinstance(answered, str):
            if ask == "instruction":
                more = fields.get("input", fields.get("context"))
                return alpaca_prompt(asked, more if isinstance(more, str) else ""), answered
            apart = asked[-1:].isspace() or answered[:1].isspace()
            return asked if apart else f"{asked}\n", answered
    return None


def alpaca_prompt(instruction: str, more: str = "") -> str:
    """The text before the response: Alpaca's, as Alpaca-LoRA and LLM-Pruner (2305.11627) train."""
    task = "Below is an instruction that describes a task"
    wanted = "Write a response that appropriately completes the request."
    if not more:
        return f"{task}. {wanted}\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    return (
        f"{task}, paired with an input that provides further context. {wanted}\n\n"
        f"### Instruction:\n{instruction}\n\n### Input:\n{more}\n\n### Response:\n"
    )


@dataclass
class TextOf:
    """Rows as texts; `name` is the field to read (None: one that is known by its name).

    What the user should hear of is counted: characters that are none, conversations that no
    template wrote, texts without fields where one is named.
    """

    name: str | None = None
    tokenizer: Any = None
    replaced: int = field(default=0, init=False)
    untold: int = field(default=0, init=False)
    plain: int = field(default=0, init=False)
    fielded: int = field(default=0, init=False)

    def __call__(self, row: Any, where: str) -> str:
        """The text of a row, without characters that are none; empty if the field is.

        Raises:
            SecateurError: it has none; the message lists the fields that there are.
        """
        return self.clean(self._text(row, where))

    def clean(self, text: str) -> str:
        """`text` with U+FFFD for halves of surrogate pairs and NULs, which no tokenizer takes."""
        if text.isascii() and "\0" not in text:
            return text
        good, count = _NO_CHARACTER.subn("\ufffd", text)
        self.replaced += count
        return good

    def remarks(self) -> list[str]:
        """What the user should know of the texts that were read."""
        found = []
        if self.replaced:
            found.append(
                f"{self.replaced:,} characters of the text are none (halves of surrogate pairs,"
                " NULs): U+FFFD stands for each"
            )
        if self.untold:
            why = (
                "refuses" if getattr(self.tokenizer, "chat_template", None) else "is not there for"
            )
            found.append(
                f"the tokenizer's chat template {why} {self.untold:,} conversations: their messages"
                " are joined as plain text"
            )
        if self.name is not None and self.plain and not self.fielded:
            found.append(f"--field {self.name} changes nothing: the text is not in fields")
        return found

    def _text(self, row: Any, where: str) -> str:
        if isinstance(row, str):
            self.plain += 1
            return row
        if not isinstance(row, Mapping):
            raise SecateurError(f"{where} has no text: {_EXPECTED}.")
        if self.name is not None:
            return self._named(row, self.name, where)
        fields = lowered(row)
        for name in TEXTS:
            if isinstance(fields.get(name), str):
                return str(fields[name])
        for name in CHATS:
            if _is_chat(fields.get(name)):
                return self._conversation(fields[name])
        pair = pair_of(row)
        if pair is not None:
            return "".join(pair)
        if any(name in fields and fields[name] is None for name in TEXTS):
            return ""
        held = [name for name in TEXTS if name in fields]
        if held:
            where = f"{where} has no text: {_EXPECTED}"
            raise _is_no_text(row, held[0], fields[held[0]], where)
        raise _no_text(row, where)

    def _named(self, row: Mapping[Any, Any], name: str, where: str) -> str:
        value = row[name] if name in row else lowered(row).get(name.lower(), self)
        if value is self:
            raise SecateurError(
                f"{where} has no field {name!r} (it has {_names(row)}).\nName one: --field NAME"
            )
        self.fielded += 1
        if value is None:
            return ""
        if _is_chat(value):
            return self._conversation(value)
        if not isinstance(value, str):
            raise _is_no_text(row, name, value, where)
        return value

    def _conversation(self, messages: list[Any]) -> str:
        """What the tokenizer's chat template makes of messages; joined by blank lines if nothing.

        The beginning-of-text token comes with tokenising, and so the template's is left out.
        """
        chat = [_message(message) for message in messages]
        if getattr(self.tokenizer, "chat_template", None):
            try:
                text = str(self.tokenizer.apply_chat_template(chat, tokenize=False))
            except Exception:  # a template is a program: it raises what it likes
                pass
            else:
                return text.removeprefix(str(self.tokenizer.bos_token or ""))
        self.untold += 1
        return "\n\n".join(message["content"] for message in chat)


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and _said(one) is not None for one in value)
    )


def _said(message: Mapping[Any, Any]) -> Any:
    """What a message says: text, or parts of which some are; None if it is no message."""
    if "role" in message and "content" in message:
        return message["content"] if message["content"] is not None else ""
    return message.get("value") if "from" in message else None


def _message(message: Mapping[Any, Any]) -> dict[str, str]:
    said = _said(message)
    if isinstance(said, list):
        parts = (part.get("text") for part in said if isinstance(part, Mapping))
        said = "\n".join(part for part in parts if isinstance(part, str))
    role = str(message.get("role", message.get("from")))
    return {"role": _ROLES.get(role, role), "content": str(said)}


def _no_text(row: Mapping[Any, Any], where: str) -> SecateurError:
    return SecateurError(
        f"{where} has no text: {_EXPECTED}, and its fields are {_names(row)}.\n"
        "Name the one to read: --field NAME"
    )


def _is_no_text(row: Mapping[Any, Any], name: str, value: Any, where: str) -> SecateurError:
    cure = f"Name another of {_names(row)}: --field NAME" if len(row) > 1 else "Put a string there."
    return SecateurError(
        f"{where}: the field {name!r} is not text, but {type(value).__name__}.\n{cure}"
    )


def _names(row: Mapping[Any, Any]) -> str:
    names = [str(name)[:40] for name in row]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"
