"""The tokenizer's chat template: which one is used, and which day it writes.

Templates are Jinja programs. Those of Llama 3.2, Granite and others write the current day into
every text (`strftime_now`), so one head would give another reward tomorrow. Here such a template
writes a fixed day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any, cast

from jinja2 import TemplateError, nodes
from transformers.utils import chat_template_utils

from r2m_service.modeling import TEMPLATE_DATE

CLOCK = "strftime_now"
"""The one function by which transformers tells a template the time."""


class ChatTemplate:
    """Renders conversations.

    Attributes:
        name: of the template, where the tokenizer has several and the operator chose one.
        problem: why no conversation can be rendered, and the mend; None: they can.
        date: the day that the template writes, as YYYY-MM-DD; None: it writes none.

    Args:
        tokenizer: a Hugging Face tokenizer.
        name: of the template to use; default: the one that the tokenizer takes by itself.
        day: what the template writes in place of the current day.

    Raises:
        ValueError: the tokenizer has no template of this name, or the day cannot be fixed.
    """

    def __init__(
        self, tokenizer: Any, *, name: str | None = None, day: date = TEMPLATE_DATE
    ) -> None:
        self._tokenizer = tokenizer
        self._moment = datetime.combine(day, time())
        self.name = name
        self.problem: str | None = None
        self.date: str | None = None
        given: object = getattr(tokenizer, "chat_template", None)
        known = cast("Mapping[str, str]", given) if isinstance(given, Mapping) else {}
        if name is not None and name not in known:
            raise ValueError(
                f"the tokenizer has no chat template named {name!r}: {_listed(known)} "
                "(--chat-template)"
            )
        sources = _sources(given, known, name)
        if not sources:
            self.problem = (
                f"the tokenizer has several chat templates and no default: {_listed(known)}; "
                "choose one with --chat-template"
                if known
                else "the tokenizer has no chat template"
            )
            return
        try:
            writes_date = any(_writes_date(source) for source in sources)
        except (TemplateError, ImportError) as error:
            self.problem = f"the tokenizer's chat template cannot be compiled: {error}"
            return
        if writes_date:
            self.date = day.isoformat()
            self._require_pinned()

    def render(self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> str:
        """The text of a conversation.

        Raises:
            Exception: whatever the template raises.
        """
        source = self.name
        if self.date is not None:
            source = self._pinned(self._tokenizer.get_chat_template(self.name, tools))
        return str(
            self._tokenizer.apply_chat_template(
                turns, tools=tools, chat_template=source, tokenize=False
            )
        )

    def _pinned(self, source: str) -> str:
        """The template with a clock that stands still.

        transformers replaces every render variable that is no plain data, so the clock has to be a
        global of the compiled template. Compiled templates are shared by their source, within the
        process: the comment, which renders to nothing, keeps this one apart from others.
        """
        source = f"{{# {self.date} #}}\n{source}"
        # Private, and there since transformers 4.43; `_require_pinned` notices where it is not.
        compiled = chat_template_utils._compile_jinja_template(source)  # pyright: ignore[reportPrivateUsage]
        compiled.globals[CLOCK] = self._moment.strftime
        return source

    def _require_pinned(self) -> None:
        probe = self._pinned(f"{{{{ {CLOCK}('%Y-%m-%d') }}}}")
        turns = [{"role": "user", "content": "x"}]
        try:
            written = self._tokenizer.apply_chat_template(
                turns, chat_template=probe, tokenize=False
            )
        except Exception as error:  # of a tokenizer with code of its own, whatever it raises
            written = str(error)
        if written != self.date:
            raise ValueError(
                "its chat template writes the current date, which cannot be fixed with this "
                f"tokenizer and this release of transformers: expected {self.date}, got "
                f"{written!r:.200}; give it a template that writes none"
            )


def _sources(given: object, known: Mapping[str, str], name: str | None) -> list[str]:
    """The templates that may be used: one, or the default and the one for calls with tools."""
    if name is not None:
        return [known[name]]
    if not known:
        return [str(given)] if given else []
    return [known[one] for one in ("default", "tool_use") if one in known and "default" in known]


def _listed(known: Mapping[str, str]) -> str:
    return f"it has {', '.join(sorted(known))}" if known else "it has no named ones"


def _writes_date(source: str) -> bool:
    environment = chat_template_utils._compile_jinja_template(source).environment  # pyright: ignore[reportPrivateUsage]
    names = environment.parse(source).find_all(nodes.Name)
    return any(one.name == CLOCK for one in names)
