"""The API key that goes with every call, and never into a message."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

VARIABLE = "R2M_API_KEY"


def with_key(
    headers: Mapping[str, str],
    api_key: str | None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """The headers, with the key that is given or that R2M_API_KEY holds.

    Args:
        headers: an `Authorization` among them wins over the variable.

    Raises:
        ValueError: two of them, or characters that no key has.
    """
    own = any(name.lower() == "authorization" for name in headers)
    if api_key is not None and own:
        raise ValueError("give api_key or an Authorization header, not both")
    found = api_key if api_key is not None else environment.get(VARIABLE)
    if own or not found:
        return dict(headers)
    found = found.strip()  # a file's content ends with a line break
    if not re.fullmatch(r"[\x21-\x7e]+", found):
        # Not shown: most of it may be right.
        raise ValueError("the API key holds characters that no key has, such as spaces")
    return {**headers, "Authorization": f"Bearer {found}"}
