"""Forms of other servers that are not served here, and the routes to call in their place."""

from __future__ import annotations

import re

from r2m_service.transports.http.scoring import PAIRS

_ABSENT = (
    (r"(/v\d+)?/pooling", "vLLM's pooling form is not served: POST /classify answers with rewards"),
    (r"(/v\d+)?/(score|rerank)", PAIRS),
    (
        "/v1/classify",
        "SGLang applies a softmax on this path, under which a reward model's one class is always "
        "1: POST /classify answers with raw rewards",
    ),
    (
        "/v2/(health|models|repository).*",
        "KServe's v2 protocol is not served: POST /v1/score answers with rewards, GET /readyz says "
        "whether the server takes calls",
    ),
)
_OF_RUN = "(/runs/[^/]+)?"


def absent(path: str) -> str | None:
    """What a path of another server's interface is called here; None: it is of none.

    Args:
        path: of which there is no route.
    """
    return next((words for form, words in _ABSENT if re.fullmatch(_OF_RUN + form, path)), None)
