"""Text that somebody's chat template has been over → the conversation it was made from.

Trainers send what their policy saw and said, special tokens and all. The markup of the usual families is
recognised and taken off; the words go through our own template, like everybody else's.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from app.types import Item, Message

EMPTY_RESPONSE = "\n"
ROLE_ALIASES = {"human": "user", "model": "assistant", "ipython": "tool", "developer": "system"}
SPECIAL_TOKENS = re.compile(
    r"</?s>|<bos>|<eos>|<pad>|<unk>|\[PAD\]|<\|pad\|>|<\|end\|>|<\|endoftext\|>|<\|begin_of_text\|>"
    r"|<\|end_of_text\|>|<\|eot_id\|>|<\|eom_id\|>|<\|finetune_right_pad_id\|>|<\|im_start\|>|<\|im_end\|>"
    r"|<start_of_turn>|<end_of_turn>|<｜begin▁of▁sentence｜>|<｜end▁of▁sentence｜>"
)


class TemplatedTextMode(StrEnum):
    """What is done with text that arrives rendered."""

    RETEMPLATE = "retemplate"
    SPLIT = "split"
    AS_IS = "as-is"


@dataclass(frozen=True, slots=True)
class MarkupFamily:
    """A markup: what opens a turn, naming its role in the text or by its group, and what ends one."""

    name: str
    turn_start: re.Pattern[str]
    turn_end: re.Pattern[str]
    exact_whitespace: bool = True


MARKUP_FAMILIES = (
    MarkupFamily("chatml", re.compile(r"<\|im_start\|>(?P<role>\w+)\n"), re.compile(r"<\|im_end\|>")),
    MarkupFamily(
        "llama-3",
        re.compile(r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n"),
        re.compile(r"<\|eo[tm]_id\|>"),
    ),
    MarkupFamily("gemma", re.compile(r"<start_of_turn>(?P<role>\w+)\n"), re.compile(r"<end_of_turn>")),
    MarkupFamily(
        "mistral and llama-2",
        re.compile(
            r"\[INST\]\s*<<SYS>>(?P<system>)|<</SYS>>(?P<user>)|\[SYSTEM_PROMPT\](?P<system2>)"
            r"|\[INST\](?P<user2>)|\[/INST\](?P<assistant>)"
        ),
        re.compile(r"\[/SYSTEM_PROMPT\]|</s>"),
        exact_whitespace=False,
    ),
    MarkupFamily(
        "zephyr and phi",
        re.compile(r"<\|(?P<role>system|user|assistant)\|>\n"),
        re.compile(r"</s>|<\|end\|>|<\|endoftext\|>"),
    ),
    MarkupFamily(
        "deepseek", re.compile(r"<｜(?P<role>User|Assistant)｜>"), re.compile(r"<｜end▁of▁sentence｜>")
    ),
    MarkupFamily(
        "hh",
        re.compile(r"(?:^|\n\n)(?P<role>Human|Assistant):"),
        re.compile(r"</s>|<\|endoftext\|>"),
        exact_whitespace=False,
    ),
)


@dataclass(frozen=True, slots=True)
class ParsedText:
    """A conversation, and the markup it was recognised by."""

    item: Item
    family: str


def parse_templated_text(text: str, prompt: str | None, mode: TemplatedTextMode) -> ParsedText:
    """What was said to whom; `text` ends with a response and mostly begins with its prompt.

    Where the prompt is given, markup after it is the response's own and opens no turns.
    """
    if mode is TemplatedTextMode.AS_IS:
        return _parsed((), text, "none")
    apart = bool(prompt) and text.startswith(prompt or "")
    before, response = (prompt or "", text[len(prompt or "") :]) if apart else ("", text)
    if mode is TemplatedTextMode.SPLIT:
        return _parsed((Message("user", before),), response, "none")
    for family in MARKUP_FAMILIES:
        turns = _parse_turns(before if apart else text, family)
        if turns and turns[-1].role == "assistant":
            *asked, begun = turns
            said = begun.content + (_turn_content(response, family) if apart else "")
            return _parsed(tuple(asked), said, family.name)
    return _parsed(
        (Message("user", SPECIAL_TOKENS.sub("", before)),), SPECIAL_TOKENS.sub("", response), "none"
    )


def _parsed(messages: tuple[Message, ...], response: str, family: str) -> ParsedText:
    """A policy may say nothing: a blank line is scored in its place, so that no sample is lost."""
    return ParsedText(Item(messages or (Message("user", ""),), response or EMPTY_RESPONSE), family)


def _parse_turns(text: str, family: MarkupFamily) -> list[Message]:
    """The turns of text in a family's markup; none where there is no such markup."""
    opened = list(family.turn_start.finditer(text))
    if not opened:
        return []
    lead = _turn_content(text[: opened[0].start()], family)
    stops = [*(found.start() for found in opened[1:]), len(text)]
    turns = [Message("user", lead)] if lead.strip() else []
    for found, stop in zip(opened, stops, strict=True):
        turns.append(Message(_turn_role(found), _turn_content(text[found.end() : stop], family)))
    return turns


def _turn_role(opened: re.Match[str]) -> str:
    named = {name: got for name, got in opened.groupdict().items() if got is not None}
    word = (named.get("role") or next(iter(named)).rstrip("2")).lower()
    role = ROLE_ALIASES.get(word, word)
    return role if role in ("system", "user", "assistant", "tool") else "user"


def _turn_content(text: str, family: MarkupFamily) -> str:
    ended = family.turn_end.search(text)
    said = SPECIAL_TOKENS.sub("", text[: ended.start()] if ended else text)
    return said if family.exact_whitespace else said.strip()
