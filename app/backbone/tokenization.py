"""Turns items into token ids with a chat template; the text of messages never becomes special tokens.

The template is rendered with placeholders instead of contents. Its markup and the contents are tokenized
separately, so equal prefixes of conversations become equal prefixes of ids, in training and in serving.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jinja2.exceptions import TemplateError
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from app.errors import InvalidInput
from app.types import AssistantTurn, EncodedItem, Item, Message

ROLES = frozenset({"system", "user", "assistant", "tool"})
SENTENCE_ENDS = frozenset(".!?\n\u2026\u3002\uff01\uff1f")
"""Characters that end a sentence: also a line break, the ellipsis and full stops of Chinese and Japanese."""
PLACEHOLDER = "\u241fsparserm-content\u241f"


class EncodedPrompt(NamedTuple):
    """The ids of a conversation, opened for a response, and its assistant turns.

    The first `num_opening_ids` ids are markup before the first content; they are never cut.
    """

    ids: list[int]
    num_opening_ids: int
    num_messages: int
    turns: tuple[AssistantTurn, ...]


class ChatTokenizer:
    """Encodes items with the tokenizer's chat template.

    Text that spells a special token is encoded as ordinary text. Items over `max_tokens` lose the oldest text
    of their prompt first, then the beginning of the response; the template's opening is kept.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int = 2048,
        max_text_chars: int = 1_000_000,
    ) -> None:
        if not isinstance(tokenizer.chat_template, str):
            raise InvalidInput("this backbone's tokenizer has no chat template", "backbone")
        self.template = tokenizer.chat_template
        self.template_sha256 = hashlib.sha256(self.template.encode()).hexdigest()
        self.max_tokens = max_tokens
        self.max_text_chars = max_text_chars
        self.tokenizer = tokenizer
        state = tokenizer.backend_tokenizer.to_str()
        self._markup: Tokenizer = Tokenizer.from_str(state)
        self._content: Tokenizer = Tokenizer.from_str(state)
        self._content.encode_special_tokens = True
        for encoder in (self._markup, self._content):
            encoder.no_padding()
            encoder.no_truncation()
        self._strips_contents = f" {PLACEHOLDER} " not in self._render((Message("user", f" {PLACEHOLDER} "),))
        self.closing_token = self._find_closing_token()
        self._ends_sentence = self._find_sentence_ends()

    def encode(self, items: Sequence[Item], *, truncate: bool = True) -> list[EncodedItem]:
        """Encode all items; raise InvalidInput for the first that cannot be scored.

        Without `truncate`, an item over `max_tokens` cannot be scored.
        """
        for index, item in enumerate(items):
            self._check(item, index)
        texts = {text for item in items for text in self._texts(item)}
        ids = self._encode_texts(sorted(texts))
        prompts: dict[tuple[Message, ...], EncodedPrompt] = {}
        for index, item in enumerate(items):
            if item.messages not in prompts:
                prompts[item.messages] = self._encode_prompt(item.messages, ids, index)
        return [
            self._join(prompts[item.messages], ids[item.response], index, truncate=truncate)
            for index, item in enumerate(items)
        ]

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each single token, for display."""
        return [str(self._content.decode([token], skip_special_tokens=False)) for token in ids]

    def decode_text(self, ids: Sequence[int]) -> str:
        """Return the text of consecutive tokens."""
        return str(self._content.decode(list(ids), skip_special_tokens=False))

    @property
    def padding_token(self) -> int:
        """The id of a special token other than the closing token, for models that need padding."""
        return next(int(token) for token in self.tokenizer.all_special_ids if token != self.closing_token)

    def _check(self, item: Item, index: int) -> None:
        if not item.messages:
            raise InvalidInput("a conversation needs at least one message", "messages", "empty", index)
        if not item.response:
            raise InvalidInput("the response is empty; there is nothing to score", "response", "empty", index)
        for i, message in enumerate(item.messages):
            if message.role not in ROLES:
                roles = ", ".join(sorted(ROLES))
                raise InvalidInput(
                    f"unknown role; use one of {roles}", f"messages[{i}].role", "bad_role", index
                )
        contents = [(f"messages[{i}].content", m.content) for i, m in enumerate(item.messages)]
        for field, text in [*contents, ("response", item.response)]:
            self._check_text(text, field, index)

    def _check_text(self, text: str, field: str, index: int) -> None:
        if len(text) > self.max_text_chars:
            message = f"text of {len(text)} characters; the limit is {self.max_text_chars}"
            raise InvalidInput(message, field, "text_too_long", index)
        if not _is_unicode(text):
            message = "text holds a lone surrogate, which is not Unicode"
            raise InvalidInput(message, field, "bad_unicode", index)

    def _texts(self, item: Item) -> list[str]:
        return [*(self._strip(m.content) for m in item.messages), item.response]

    def _strip(self, content: str) -> str:
        """Strip a message's content if the template does so."""
        return content.strip() if self._strips_contents else content

    def _encode_texts(self, texts: list[str]) -> dict[str, list[int]]:
        encodings = self._content.encode_batch_fast(texts, add_special_tokens=False)
        return {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}

    def _encode_prompt(
        self, messages: tuple[Message, ...], ids: dict[str, list[int]], index: int
    ) -> EncodedPrompt:
        """Encode the messages of a conversation, up to where the response begins."""
        placeholders = tuple(Message(m.role, PLACEHOLDER) for m in messages)
        try:
            pieces = self._render(placeholders, open_turn=True).split(PLACEHOLDER)
        except TemplateError as error:
            message = f"the chat template refuses this conversation: {error}"
            raise InvalidInput(message, "messages", "bad_conversation", index) from error
        if len(pieces) != len(messages) + 1:
            message = "the chat template does not show every message of this conversation"
            raise InvalidInput(message, "messages", "bad_conversation", index)
        markup = [self._encode_markup(piece) for piece in pieces]
        joined, turns = list(markup[0]), list[AssistantTurn]()
        for number, following in enumerate(markup[1:]):
            start = len(joined)
            joined += ids[self._strip(messages[number].content)]
            is_closed = following[:1] == [self.closing_token]
            if messages[number].role == "assistant" and len(joined) > start and is_closed:
                turns.append(AssistantTurn(number, start, len(joined)))
            joined += following
        return EncodedPrompt(joined, len(markup[0]), len(messages), tuple(turns))

    def _join(self, prompt: EncodedPrompt, response: list[int], index: int, *, truncate: bool) -> EncodedItem:
        """Join a prompt, a response and the closing token, and cut the prompt, then the response."""
        num_tokens = len(prompt.ids) + len(response) + 1
        excess = num_tokens - self.max_tokens
        if excess > 0:
            if not truncate:
                message = f"{num_tokens} tokens; the limit is {self.max_tokens}"
                raise InvalidInput(message, code="too_many_tokens", item=index)
            cut = min(excess, len(prompt.ids) - prompt.num_opening_ids)
            prompt, response = _cut_prompt(prompt, cut), response[excess - cut :]
        ids = (*prompt.ids, *response, self.closing_token)
        ends = frozenset(np.flatnonzero(self._ends_sentence[np.array(ids)]).tolist())
        return EncodedItem(ids, len(prompt.ids), excess > 0, prompt.num_messages, prompt.turns, ends)

    def _encode_markup(self, piece: str) -> list[int]:
        return list(self._markup.encode(piece, add_special_tokens=False).ids)

    def _find_closing_token(self) -> int:
        """Return the first token of the markup after an assistant message."""
        turn = (Message("user", PLACEHOLDER), Message("assistant", PLACEHOLDER))
        closing = self._encode_markup(self._render(turn).rsplit(PLACEHOLDER, 1)[1])
        if not closing:
            raise InvalidInput("the chat template does not close an assistant turn", "backbone")
        return closing[0]

    def _find_sentence_ends(self) -> NDArray[np.bool_]:
        """Return for each token of the vocabulary whether its text has a character that ends a sentence."""
        size = 1 + max(self._content.get_vocab(with_added_tokens=True).values())
        texts = self._content.decode_batch([[token] for token in range(size)], skip_special_tokens=False)
        return np.array([not SENTENCE_ENDS.isdisjoint(text) for text in texts])

    def _render(self, messages: tuple[Message, ...], *, open_turn: bool = False) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return str(
            self.tokenizer.apply_chat_template(
                turns, chat_template=self.template, tokenize=False, add_generation_prompt=open_turn
            )
        )


def _cut_prompt(prompt: EncodedPrompt, count: int) -> EncodedPrompt:
    """Return the prompt without its oldest `count` ids after the opening, and without turns that were cut."""
    start = prompt.num_opening_ids + count
    turns = tuple(
        replace(turn, start=turn.start - count, end=turn.end - count)
        for turn in prompt.turns
        if turn.start >= start
    )
    return prompt._replace(ids=prompt.ids[: prompt.num_opening_ids] + prompt.ids[start:], turns=turns)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
