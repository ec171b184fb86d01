"""Exchange → Encoded: the pinned template, contents that can never smuggle in special tokens.

The template is rendered around sentinels; what it adds and what people wrote are tokenised apart.
Equal prefixes of text therefore become equal prefixes of ids, in training and in serving alike.
"""

import hashlib
import itertools
from collections.abc import Sequence

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from app.errors import InvalidInput
from app.types import EncodedItem, Item, Message

ROLES = frozenset({"system", "user", "assistant", "tool"})
SENTINEL = "\u241fsparserm-content\u241f"


class Text:
    """Turns conversations into token ids by one chat template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int = 2048,
        max_text_chars: int = 1_000_000,
    ) -> None:
        if not isinstance(tokenizer.chat_template, str):
            raise InvalidInput("this backbone's tokenizer carries no chat template", "backbone")
        self.template = tokenizer.chat_template
        self.digest = hashlib.sha256(self.template.encode()).hexdigest()
        self.max_tokens = max_tokens
        self.max_text_chars = max_text_chars
        self.tokenizer = tokenizer
        state = tokenizer.backend_tokenizer.to_str()
        self._markup: Tokenizer = Tokenizer.from_str(state)
        self._content: Tokenizer = Tokenizer.from_str(state)
        self._content.encode_special_tokens = True
        for one in (self._markup, self._content):
            one.no_padding()
            one.no_truncation()
        self._trims = f" {SENTINEL} " not in self._render((Message("user", f" {SENTINEL} "),))
        self.closing = self._closing_token()

    def encode(self, exchanges: Sequence[Item], *, truncate: bool = True) -> list[EncodedItem]:
        """Token ids of every exchange; the first one that cannot be scored raises InvalidInput."""
        for index, exchange in enumerate(exchanges):
            self._check(exchange, index)
        texts = {text for exchange in exchanges for text in self._contents(exchange)}
        ids = self._tokenise(sorted(texts))
        prompts: dict[tuple[Message, ...], tuple[list[int], int]] = {}
        for index, exchange in enumerate(exchanges):
            if exchange.messages not in prompts:
                prompts[exchange.messages] = self._prompt(exchange.messages, ids, index)
        return [
            self._join(*prompts[exchange.messages], ids[exchange.response], index, truncate=truncate)
            for index, exchange in enumerate(exchanges)
        ]

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, for people to read."""
        return [str(self._content.decode([token], skip_special_tokens=False)) for token in ids]

    @property
    def padding(self) -> int:
        """A token that never ends a conversation, for models that must be padded."""
        return next(int(token) for token in self.tokenizer.all_special_ids if token != self.closing)

    def _check(self, exchange: Item, index: int) -> None:
        if not exchange.messages:
            raise InvalidInput("a conversation needs at least one message", "messages", "empty", index)
        if not exchange.response:
            raise InvalidInput("the response is empty; there is nothing to score", "response", "empty", index)
        for i, message in enumerate(exchange.messages):
            if message.role not in ROLES:
                known = ", ".join(sorted(ROLES))
                raise InvalidInput(
                    f"unknown role; use one of {known}", f"messages[{i}].role", "bad_role", index
                )
        named = [(f"messages[{i}].content", m.content) for i, m in enumerate(exchange.messages)]
        for place, text in [*named, ("response", exchange.response)]:
            if len(text) > self.max_text_chars:
                raise InvalidInput(
                    f"text of {len(text)} characters; the limit is {self.max_text_chars}",
                    place,
                    "text_too_long",
                    index,
                )
            if not _is_unicode(text):
                raise InvalidInput(
                    "text holds a lone surrogate, which is not Unicode", place, "bad_unicode", index
                )

    def _contents(self, exchange: Item) -> list[str]:
        return [*(self._trim(m.content) for m in exchange.messages), exchange.response]

    def _trim(self, content: str) -> str:
        return content.strip() if self._trims else content

    def _tokenise(self, texts: list[str]) -> dict[str, list[int]]:
        encodings = self._content.encode_batch_fast(texts, add_special_tokens=False)
        return {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}

    def _prompt(
        self, messages: tuple[Message, ...], ids: dict[str, list[int]], index: int
    ) -> tuple[list[int], int]:
        """Ids of the prompt, and how many of them stand before the first words a person wrote."""
        hollow = tuple(Message(m.role, SENTINEL) for m in messages)
        try:
            pieces = self._render(hollow, open_turn=True).split(SENTINEL)
        except TemplateError as error:
            message = f"the chat template refuses this conversation: {error}"
            raise InvalidInput(message, "messages", "bad_conversation", index) from error
        if len(pieces) != len(messages) + 1:
            message = "the chat template does not show every message of this conversation"
            raise InvalidInput(message, "messages", "bad_conversation", index)
        markup = [self._markup_ids(piece) for piece in pieces]
        contents = [ids[self._trim(m.content)] for m in messages]
        joined = itertools.chain(markup[0], *(c + m for c, m in zip(contents, markup[1:], strict=True)))
        return list(joined), len(markup[0])

    def _join(
        self, prompt: list[int], head: int, response: list[int], index: int, *, truncate: bool
    ) -> EncodedItem:
        room = self.max_tokens - 1
        excess = len(prompt) + len(response) - room
        if excess > 0:
            if not truncate:
                raise InvalidInput(
                    f"{len(prompt) + len(response) + 1} tokens; the limit is {self.max_tokens}",
                    code="too_many_tokens",
                    item=index,
                )
            cut = min(excess, len(prompt) - head)
            prompt = prompt[:head] + prompt[head + cut :]
            response = response[excess - cut :]
        return EncodedItem((*prompt, *response, self.closing), len(prompt), excess > 0)

    def _markup_ids(self, piece: str) -> list[int]:
        return list(self._markup.encode(piece, add_special_tokens=False).ids)

    def _closing_token(self) -> int:
        turn = (Message("user", SENTINEL), Message("assistant", SENTINEL))
        closing = self._markup_ids(self._render(turn).rsplit(SENTINEL, 1)[1])
        if not closing:
            raise InvalidInput("the chat template does not close an assistant turn", "backbone")
        return closing[0]

    def _render(self, messages: tuple[Message, ...], *, open_turn: bool = False) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return str(
            self.tokenizer.apply_chat_template(
                turns, chat_template=self.template, tokenize=False, add_generation_prompt=open_turn
            )
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
