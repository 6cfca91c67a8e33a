"""A sample's text becomes token ids, exactly as the reward model was trained to read it.

`chat`: the tokenizer's chat template over one user and one assistant turn, or over a whole
conversation. The template writes the special tokens itself, so none are added: no double BOS.
An encoder without a template reads one user's and one assistant's turn as the tokenizer's pair.
`raw`: prompt + response, joined as they are, with the special tokens the tokenizer adds by default
(a BOS that the text begins with is not doubled), or without any.
Token ids are taken as they are.

A text with too many tokens is refused, or cut on the side that the caller names. A cut keeps what
the tokenizer's own truncation keeps: the special tokens that it adds stay at their ends. A BOS that
the text (or the list of ids) begins with by itself stays on a left cut too: models are trained with
it, and a template writes it where the tokenizer would have added it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

from r2m_service.modeling import TEMPLATE_DATE
from r2m_service.modeling.chat_template import ChatTemplate

Side = Literal["left", "right"]
BOTH = "prompt, response"

MARGIN = 1 << 14
"""Characters that are tokenized beside those that can be kept, where a long text is cut.

Tokenizers work word by word: between a letter or digit and the space behind it no token and no
split rule reaches across, so what is behind such a place has the same ids whatever is before it,
and the other way round. Where the margin has one such place, what is kept has the ids that it has
in the whole text. Only within one unbroken word of more characters than this may they differ.
"""


class TextFault(StrEnum):
    """Why a text has no token ids."""

    EMPTY = "empty"
    INVALID = "invalid"
    TOO_LONG = "too_long"
    NO_TEMPLATE = "no_template"


class TextError(ValueError):
    """A text that cannot be scored: what is wrong, what was expected, and in which field."""

    def __init__(self, fault: TextFault, message: str, field: str = BOTH) -> None:
        super().__init__(message)
        self.fault = fault
        self.field = field


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids within the model's length.

    Attributes:
        cut: how many more there were. Of a text so long that it is not tokenized whole (more
            characters than `max_length` of the longest tokens have), the part that was not is
            counted by its characters, at the tokens per character of the rest.
    """

    ids: tuple[int, ...]
    cut: int = 0


class TextEncoder:
    """Formats and tokenizes. Not thread-safe: tokenizers are not.

    Attributes:
        template: of conversations, and of pairs that are chat.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens; a longer text is refused, or cut where the caller asks for it.
        vocabulary: how many ids the model embeds.
        chat_template: name of the template, where the tokenizer has several.
        template_date: what a template writes in place of the current day.
        pairs: without a template, chat is the tokenizer's pair of prompt and response (encoders).
        separator: id of the token behind which a model embeds another segment, where it does.

    Raises:
        ValueError: as `ChatTemplate`.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        vocabulary: int,
        *,
        chat_template: str | None = None,
        template_date: date = TEMPLATE_DATE,
        pairs: bool = False,
        separator: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocabulary = vocabulary
        self.template = ChatTemplate(tokenizer, name=chat_template, day=template_date)
        self.pairs = pairs and self.template.problem is not None
        self._separator = separator
        longest = max((len(token) for token in tokenizer.get_vocab()), default=1)
        # Hardly a token covers more characters than its own spelling has, so a text this long has
        # too many: known without the seconds and gigabytes that tokenizing megabytes takes.
        self._max_characters = max_length * longest

    @property
    def has_template(self) -> bool:
        """Whether chat can be formatted; `template.problem` says why not."""
        return self.template.problem is None or self.pairs

    @property
    def settings(self) -> dict[str, str]:
        """Settings beside the tokenizer that change a text, where they do: of the fingerprint."""
        given = {"chat_template": self.template.name, "template_date": self.template.date}
        return {name: value for name, value in given.items() if value is not None}

    def pair(
        self,
        prompt: str,
        response: str,
        *,
        raw: bool = False,
        special: bool = True,
        cut: Side | None = None,
        empty: bool = False,
    ) -> Tokens:
        """Token ids of a prompt and its response.

        Args:
            raw: joined as they are instead of through the template.
            special: whether the tokenizer adds its special tokens to a raw text.
            cut: take tokens off this side where there are too many.
            empty: take an empty response to a prompt for a text.

        Raises:
            TextError: no text, text that is no Unicode, no template, or too many tokens.
        """
        if not prompt and not raw:
            raise TextError(TextFault.EMPTY, "the prompt is empty", "prompt")
        if not response and not (empty and prompt):
            raise TextError(TextFault.EMPTY, "the response is empty", "response")
        self._check_characters([prompt, response], BOTH, cut)
        if raw:
            return self._encoded(prompt + response, cut, BOTH, special=special)
        if self.pairs:
            return self._paired(prompt, response, cut, BOTH)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return self._encoded(self._templated(turns, None, BOTH), cut, BOTH, special=False)

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        cut: Side | None = None,
        empty: bool = False,
    ) -> Tokens:
        """Token ids of a conversation whose last turn, an assistant's, is judged.

        Args:
            empty: take a last turn without content for a text, where another turn has some.

        Raises:
            TextError: as `pair`; another last turn; a template that refuses these turns.
        """
        last = f"messages[{len(messages) - 1}]"
        if messages[-1].get("role") != "assistant":
            raise TextError(
                TextFault.INVALID,
                "the last message is the one that is judged: its role is assistant",
                f"{last}.role",
            )
        filled = [bool(turn.get("content") or turn.get("tool_calls")) for turn in messages]
        if not filled[-1] and not (empty and any(filled)):
            raise TextError(TextFault.EMPTY, "the last message is empty", last)
        contents = [str(turn.get("content") or "") for turn in messages]
        self._check_characters(contents, "messages", cut)
        if self.pairs and [turn.get("role") for turn in messages] == ["user", "assistant"]:
            return self._paired(contents[0], contents[1], cut, "messages")
        text = self._templated(messages, tools, "messages")
        return self._encoded(text, cut, "messages", special=False)

    def ids(self, ids: Sequence[int], *, cut: Side | None = None) -> Tokens:
        """Token ids as the client made them.

        Raises:
            TextError: ids that the model does not embed, or too many of them.
        """
        for place, one in enumerate(ids):
            if not 0 <= one < self.vocabulary:
                raise TextError(
                    TextFault.INVALID,
                    f"token id {one} is not between 0 and {self.vocabulary - 1}",
                    f"token_ids[{place}]",
                )
        return self._limited(tuple(ids), cut, "token_ids")

    def _check_characters(self, texts: Sequence[str], field: str, cut: Side | None) -> None:
        count = sum(len(text) for text in texts)
        if cut is None and count > self._max_characters:
            raise TextError(
                TextFault.TOO_LONG,
                f"{count} characters are more than {self.max_length} tokens, which is all that "
                "the reward model takes",
                field,
            )
        for text in texts:
            _require_unicode(text, field)

    def _templated(
        self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, field: str
    ) -> str:
        if self.template.problem is not None:
            raise TextError(
                TextFault.NO_TEMPLATE, f"{self.template.problem}; or send format raw", field
            )
        try:
            text = self.template.render(turns, tools)
        except Exception as error:  # a template is a program: whatever it raises is about this text
            raise TextError(
                TextFault.INVALID, f"the chat template refuses this text: {error}"[:300], field
            ) from None
        _require_unicode(text, field)  # roles, names and tool calls are in it too
        return text

    def _encoded(self, text: str, cut: Side | None, field: str, *, special: bool) -> Tokens:
        part = self._reachable(text, cut)
        ids = self._ids(part, special=special)
        if self._separator in ids[:-1]:
            raise TextError(
                TextFault.INVALID, "the text holds the tokenizer's separator, which ends it", field
            )
        bos = self._bos_id
        # A text that went through a template, or was decoded from a policy's tokens, may bring the
        # BOS that the tokenizer adds.
        if special and bos is not None and ids[:2] == (bos, bos) and self._has_bos(part):
            ids = ids[1:]
        unread = round((len(text) - len(part)) * len(ids) / max(len(part), 1))
        return self._limited(ids, cut, field, self._added if special else (0, 0), unread=unread)

    def _paired(self, prompt: str, response: str, cut: Side | None, field: str) -> Tokens:
        """The tokenizer's pair; a cut takes off the prompt's beginning, or the response's end."""
        part = self._reachable(prompt, cut), self._reachable(response, cut)
        encoded = self.tokenizer(*part, return_special_tokens_mask=True, verbose=False)
        ids, special = tuple(encoded["input_ids"]), encoded["special_tokens_mask"]
        text = [place for place, one in enumerate(special) if not one]
        if self._separator is not None and any(ids[place] == self._separator for place in text):
            raise TextError(
                TextFault.INVALID,
                "the text holds the tokenizer's separator, behind which the model reads a response",
                field,
            )
        over = len(ids) - self.max_length
        if cut is None or not 0 < over < len(text):
            return self._limited(ids, None, field)
        gone = set(text[:over] if cut == "left" else text[-over:])
        kept = tuple(one for place, one in enumerate(ids) if place not in gone)
        return Tokens(kept, over)

    def _reachable(self, text: str, cut: Side | None) -> str:
        """What a cut of the text can keep, with the margin; the whole text where it is not long."""
        size = self._max_characters + MARGIN
        if cut is None or len(text) <= size:
            return text
        if cut == "right":
            return text[:size]
        bos = str(self.tokenizer.bos_token) if self._has_bos(text) else ""
        return bos + text[len(bos) - size :]

    def _limited(
        self,
        ids: tuple[int, ...],
        cut: Side | None,
        field: str,
        added: tuple[int, int] = (0, 0),
        *,
        unread: int = 0,
    ) -> Tokens:
        """The ids, or those that a cut keeps.

        Args:
            added: special tokens that the tokenizer put before and behind the text.
            unread: tokens of the text that are not among the ids, and are cut off as well.
        """
        if not ids:
            raise TextError(TextFault.EMPTY, "the text has no tokens", field)
        over = len(ids) - self.max_length
        if over <= 0:
            return Tokens(ids, unread)
        if cut is None:
            raise TextError(
                TextFault.TOO_LONG,
                f"{len(ids)} tokens, the reward model takes at most {self.max_length}",
                field,
            )
        before, behind = (min(count, self.max_length) for count in added)
        if cut == "right":
            kept = ids[: self.max_length - behind] + ids[len(ids) - behind :]
        else:
            before = before or int(ids[0] == self._bos_id)
            kept = ids[:before] + ids[over + before :]
        return Tokens(kept, over + unread)

    @cached_property
    def _added(self) -> tuple[int, int]:
        """How many special tokens the tokenizer puts before a text, and behind it."""
        # Not at once: a call can change the tokenizer's state, which the fingerprint covers.
        mask: list[int] = self.tokenizer(
            "a", add_special_tokens=True, return_special_tokens_mask=True
        )["special_tokens_mask"]
        if all(mask):
            return len(mask), 0
        return mask.index(0), mask[::-1].index(0)

    @property
    def _bos_id(self) -> int | None:
        return getattr(self.tokenizer, "bos_token_id", None)

    def _has_bos(self, text: str) -> bool:
        return self._bos_id is not None and text.startswith(self.tokenizer.bos_token)

    def _ids(self, text: str, *, special: bool) -> tuple[int, ...]:
        # verbose: its warning about long texts is our error.
        encoded: Sequence[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)[
            "input_ids"
        ]
        return tuple(encoded)


def _require_unicode(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TextError(
            TextFault.INVALID, "the text holds lone surrogates, which are no characters", field
        ) from None
