"""Texts to token ids, in a thread of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from r2m.errors import Code, Problem
from r2m_service.application.scoring_items import AnyText, Conversation, Encoded, Text
from r2m_service.application.timings import timings
from r2m_service.domain.runs import TextRules
from r2m_service.modeling.text import TextEncoder, TextError, TextFault

TEXTS_AT_ONCE = 32
TEXT_CODES = {
    TextFault.EMPTY: Code.TEXT_EMPTY,
    TextFault.INVALID: Code.TEXT_INVALID,
    TextFault.TOO_LONG: Code.TEXT_TOO_LONG,
    TextFault.NO_TEMPLATE: Code.NO_CHAT_TEMPLATE,
}


class Tokenizing:
    """Tokenizers are not thread-safe; one thread keeps them off the event loop."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="r2m-tokenize")

    def stop(self) -> None:
        """Drop what waits."""
        self._thread.shutdown(cancel_futures=True)

    async def encode(
        self, texts: Sequence[AnyText], *, rules: TextRules
    ) -> list[Encoded | Problem]:
        """Token ids, or why a text has none, for each."""
        loop = asyncio.get_running_loop()
        found: list[Encoded | Problem] = []
        # In parts, so that one call of thousands does not hold the thread that all share.
        began = time.perf_counter()
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = list(texts[start : start + TEXTS_AT_ONCE])
            found += await loop.run_in_executor(self._thread, self._encode_now, part, rules)
        ended = time.perf_counter()
        timings().add("tokenize", ended - began)
        timings().took("tokenize", began, ended)
        return found

    def _encode_now(self, texts: Sequence[AnyText], rules: TextRules) -> list[Encoded | Problem]:
        encoder = self._encoder
        cut = None if rules.truncation == "none" else rules.truncation
        empty = rules.empty_response == "score"
        found: list[Encoded | Problem] = []
        for text in texts:
            try:
                if isinstance(text, Text):
                    tokens = encoder.pair(
                        text.prompt,
                        text.response,
                        raw=text.raw,
                        special=text.special,
                        cut=cut or text.cut,
                        empty=empty,
                    )
                elif isinstance(text, Conversation):
                    tokens = encoder.conversation(text.messages, text.tools, cut=cut, empty=empty)
                else:
                    tokens = encoder.ids(text, cut=cut)
                found.append(Encoded(tokens.ids, tokens.cut))
            except TextError as error:
                found.append(Problem(TEXT_CODES[error.fault], str(error), field=error.field))
        return found
