"""A prompt and a response become token ids, exactly as the reward model was trained to read them.

`chat`: the tokenizer's chat template over one user and one assistant turn. The template writes
the special tokens itself, so none are added: no double BOS. `raw`: prompt + response, joined as
they are, with the special tokens the tokenizer adds by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any


class TextFault(StrEnum):
    """Why a text has no token ids."""

    EMPTY = "empty"
    INVALID = "invalid"
    TOO_LONG = "too_long"
    NO_TEMPLATE = "no_template"


class TextError(ValueError):
    """A text that cannot be scored: what is wrong, and what was expected."""

    def __init__(self, fault: TextFault, message: str, field: str = "prompt, response") -> None:
        super().__init__(message)
        self.fault = fault
        self.field = field


class TextEncoder:
    """Formats and tokenizes. Not thread-safe: tokenizers are not.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens; a longer text is refused, never cut.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        longest = max((len(token) for token in tokenizer.get_vocab()), default=1)
        # Hardly a token covers more characters than its own spelling has, so a text this long has
        # too many: known without the seconds and gigabytes that tokenizing megabytes takes.
        self._max_characters = max_length * longest

    def encode(self, prompt: str, response: str, *, raw: bool) -> tuple[int, ...]:
        """Token ids of one sample.

        Raises:
            TextError: no text, text that is no Unicode, no template, or too many tokens.
        """
        for name, text in (("prompt", prompt), ("response", response)):
            if not text and not (raw and name == "prompt"):
                raise TextError(TextFault.EMPTY, f"the {name} is empty", name)
        if len(prompt) + len(response) > self._max_characters:
            raise TextError(
                TextFault.TOO_LONG,
                f"{len(prompt) + len(response)} characters are more than {self.max_length} tokens, "
                "which is all that the reward model takes",
            )
        try:
            f"{prompt}{response}".encode()
        except UnicodeEncodeError:
            raise TextError(
                TextFault.INVALID, "the text holds lone surrogates, which are no characters"
            ) from None
        if raw:
            ids = self._ids(prompt + response, special=True)
        else:
            ids = self._ids(self._templated(prompt, response), special=False)
        if not ids:
            raise TextError(TextFault.EMPTY, "the text has no tokens")
        if len(ids) > self.max_length:
            raise TextError(
                TextFault.TOO_LONG,
                f"{len(ids)} tokens, the reward model takes at most {self.max_length}",
            )
        return ids

    def _templated(self, prompt: str, response: str) -> str:
        if not self.has_template:
            raise TextError(
                TextFault.NO_TEMPLATE,
                "the reward model's tokenizer has no chat template: send format raw",
            )
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        except Exception as error:  # a template is a program: whatever it raises is about this text
            raise TextError(
                TextFault.INVALID, f"the chat template refuses this text: {error}"
            ) from None

    def _ids(self, text: str, *, special: bool) -> tuple[int, ...]:
        # verbose: its warning about long texts is our error.
        encoded: Sequence[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)[
            "input_ids"
        ]
        return tuple(encoded)
