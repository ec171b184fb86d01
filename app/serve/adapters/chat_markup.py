"""Parses text that a chat template produced back into the conversation.

Trainers send their policy's prompt and response with all special tokens. The parser recognises and removes
the markup of the common model families; the messages then go through the backbone's own template, as those
of every other request do.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from app.types import Item, Message

# Scored in place of an empty response: a policy may produce one, and trainers need a reward for each sample.
EMPTY_RESPONSE = "\n"
ROLE_ALIASES = {"human": "user", "model": "assistant", "ipython": "tool", "developer": "system"}
SPECIAL_TOKENS = re.compile(
    r"</?s>|<bos>|<eos>|<pad>|<unk>|\[PAD\]|<\|pad\|>|<\|end\|>|<\|endoftext\|>|<\|begin_of_text\|>"
    r"|<\|end_of_text\|>|<\|eot_id\|>|<\|eom_id\|>|<\|finetune_right_pad_id\|>|<\|im_start\|>|<\|im_end\|>"
    r"|<start_of_turn>|<end_of_turn>|<｜begin▁of▁sentence｜>|<｜end▁of▁sentence｜>"
)


class TemplatedTextMode(StrEnum):
    """How text is treated that went through a chat template.

    `retemplate` parses its markup, `split` only separates the prompt if that is known, `as-is` scores all of
    it as a response to an empty prompt.
    """

    RETEMPLATE = "retemplate"
    SPLIT = "split"
    AS_IS = "as-is"


@dataclass(frozen=True, slots=True)
class MarkupFamily:
    """The markup of a model family: what starts a turn and what ends it.

    `turn_start` gives the role by its group `role`, or by the name of the group that matched; a digit at the
    end of the name is ignored. Without `exact_whitespace`, whitespace around a turn's content is removed.
    """

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
    """The parsed item, and the name of its markup family, or `none`."""

    item: Item
    family: str


def parse_templated_text(text: str, prompt: str | None, mode: TemplatedTextMode) -> ParsedText:
    """Parse a text that ends with a response and mostly starts with its prompt.

    If the text starts with the given prompt, markup after it belongs to the response and starts no turns.
    """
    if mode is TemplatedTextMode.AS_IS:
        return _build_parsed_text((), text, "none")
    prompt_known = bool(prompt) and text.startswith(prompt or "")
    before, response = (prompt or "", text[len(prompt or "") :]) if prompt_known else ("", text)
    if mode is TemplatedTextMode.SPLIT:
        return _build_parsed_text((Message("user", before),), response, "none")
    for family in MARKUP_FAMILIES:
        turns = _parse_turns(before if prompt_known else text, family)
        if turns and turns[-1].role == "assistant":
            *messages, last = turns
            content = last.content + (_clean_content(response, family) if prompt_known else "")
            return _build_parsed_text(tuple(messages), content, family.name)
    before, response = SPECIAL_TOKENS.sub("", before), SPECIAL_TOKENS.sub("", response)
    return _build_parsed_text((Message("user", before),), response, "none")


def _build_parsed_text(messages: tuple[Message, ...], response: str, family: str) -> ParsedText:
    return ParsedText(Item(messages or (Message("user", ""),), response or EMPTY_RESPONSE), family)


def _parse_turns(text: str, family: MarkupFamily) -> list[Message]:
    """Return the turns of a text in a family's markup, or none if the text does not have that markup."""
    starts = list(family.turn_start.finditer(text))
    if not starts:
        return []
    leading_content = _clean_content(text[: starts[0].start()], family)
    ends = [*(start.start() for start in starts[1:]), len(text)]
    turns = [Message("user", leading_content)] if leading_content.strip() else []
    for start, end in zip(starts, ends, strict=True):
        turns.append(Message(_turn_role(start), _clean_content(text[start.end() : end], family)))
    return turns


def _turn_role(turn_start: re.Match[str]) -> str:
    groups = {name: value for name, value in turn_start.groupdict().items() if value is not None}
    name = (groups.get("role") or next(iter(groups)).rstrip("2")).lower()
    role = ROLE_ALIASES.get(name, name)
    return role if role in ("system", "user", "assistant", "tool") else "user"


def _clean_content(text: str, family: MarkupFamily) -> str:
    """Return a turn's text up to its end marker, without special tokens."""
    turn_end = family.turn_end.search(text)
    content = SPECIAL_TOKENS.sub("", text[: turn_end.start()] if turn_end else text)
    return content if family.exact_whitespace else content.strip()
