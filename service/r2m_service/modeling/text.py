"""A sample's text becomes token ids, exactly as the reward model was trained to read it.

`chat`: the tokenizer's chat template over one user and one assistant turn, or over a whole
conversation. The template writes the special tokens itself, so none are added: no double BOS.
`raw`: prompt + response, joined as they are, with the special tokens the tokenizer adds by default;
a BOS that the text begins with is not doubled.
Token ids are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

Side = Literal["left", "right"]
BOTH = "prompt, response"


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
    """Token ids within the model's length; `cut` counts those that were taken off."""

    ids: tuple[int, ...]
    cut: int = 0


class TextEncoder:
    """Formats and tokenizes. Not thread-safe: tokenizers are not.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens; a longer text is refused, or cut where the caller asks for it.
        vocabulary: how many ids the model embeds.
    """

    def __init__(self, tokenizer: Any, max_length: int, vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocabulary = vocabulary
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        longest = max((len(token) for token in tokenizer.get_vocab()), default=1)
        # Hardly a token covers more characters than its own spelling has, so a text this long has
        # too many: known without the seconds and gigabytes that tokenizing megabytes takes.
        self._max_characters = max_length * longest

    def pair(
        self, prompt: str, response: str, *, raw: bool = False, cut: Side | None = None
    ) -> Tokens:
        """Token ids of a prompt and its response.

        Args:
            raw: joined as they are instead of through the template.
            cut: take tokens off this side where there are too many.

        Raises:
            TextError: no text, text that is no Unicode, no template, or too many tokens.
        """
        for name, text in (("prompt", prompt), ("response", response)):
            if not text and not (raw and name == "prompt"):
                raise TextError(TextFault.EMPTY, f"the {name} is empty", name)
        self._check_characters([prompt, response], BOTH)
        if raw:
            return self._limited(self._raw_ids(prompt + response), cut, BOTH)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return self._limited(
            self._ids(self._templated(turns, None, BOTH), special=False), cut, BOTH
        )

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        cut: Side | None = None,
    ) -> Tokens:
        """Token ids of a conversation whose last turn, an assistant's, is judged.

        Raises:
            TextError: as `pair`; another last turn; a template that refuses these turns.
        """
        if messages[-1].get("role") != "assistant":
            raise TextError(
                TextFault.INVALID,
                "the last message is the one that is judged: its role is assistant",
                f"messages[{len(messages) - 1}].role",
            )
        if not messages[-1].get("content") and not messages[-1].get("tool_calls"):
            raise TextError(
                TextFault.EMPTY, "the last message is empty", f"messages[{len(messages) - 1}]"
            )
        self._check_characters([str(turn.get("content") or "") for turn in messages], "messages")
        text = self._templated(messages, tools, "messages")
        return self._limited(self._ids(text, special=False), cut, "messages")

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

    def _check_characters(self, texts: Sequence[str], field: str) -> None:
        count = sum(len(text) for text in texts)
        if count > self._max_characters:
            raise TextError(
                TextFault.TOO_LONG,
                f"{count} characters are more than {self.max_length} tokens, which is all that "
                "the reward model takes",
                field,
            )
        try:
            for text in texts:
                text.encode()
        except UnicodeEncodeError:
            raise TextError(
                TextFault.INVALID,
                "the text holds lone surrogates, which are no characters",
                field,
            ) from None

    def _limited(self, ids: tuple[int, ...], cut: Side | None, field: str) -> Tokens:
        if not ids:
            raise TextError(TextFault.EMPTY, "the text has no tokens", field)
        over = len(ids) - self.max_length
        if over <= 0:
            return Tokens(ids)
        if cut is None:
            raise TextError(
                TextFault.TOO_LONG,
                f"{len(ids)} tokens, the reward model takes at most {self.max_length}",
                field,
            )
        return Tokens(ids[over:] if cut == "left" else ids[: self.max_length], over)

    def _templated(
        self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, field: str
    ) -> str:
        if not self.has_template:
            raise TextError(
                TextFault.NO_TEMPLATE,
                "the reward model's tokenizer has no chat template: send format raw",
                field,
            )
        try:
            return str(self.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False))
        except Exception as error:  # a template is a program: whatever it raises is about this text
            raise TextError(
                TextFault.INVALID, f"the chat template refuses this text: {error}"[:300], field
            ) from None

    def _raw_ids(self, text: str) -> tuple[int, ...]:
        """With the special tokens that the tokenizer adds, but for a BOS that is there already.

        A text that went through a template, or was decoded from a policy's tokens, brings its own.
        """
        ids = self._ids(text, special=True)
        bos = getattr(self.tokenizer, "bos_token_id", None)
        twice = bos is not None and ids[:2] == (bos, bos)
        return ids[1:] if twice and text.startswith(self.tokenizer.bos_token) else ids

    def _ids(self, text: str, *, special: bool) -> tuple[int, ...]:
        # verbose: its warning about long texts is our error.
        encoded: Sequence[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)[
            "input_ids"
        ]
        return tuple(encoded)
