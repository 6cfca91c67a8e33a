"""Write the answers that docs/api.md shows anew, where a real server answers otherwise.

    python tests/docs/refresh_api.py

Only answers whose keys, types or steady values differ are touched; look at the diff.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
import tempfile

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]

from api_answers import differences, masked
from api_blocks import PAGE, Player, blocks, documents
from support.models import save_reward_model
from support.serving import running

WIDTH = 98
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def pretty(value, indent=0):
    """JSON with what fits on one line on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + indent <= WIDTH - 12 or not isinstance(value, dict | list):
        return flat
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        inner = [f"{json.dumps(k)}: {pretty(v, indent + 2)}" for k, v in value.items()]
        ends = "{}"
    else:
        inner = [pretty(v, indent + 2) for v in value]
        ends = "[]"
    lines = f",\n{pad}".join(inner)
    return f"{ends[0]}\n{pad}{lines}\n{' ' * indent}{ends[1]}"


def rounded(value):
    """Numbers as a reader wants them."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, str):
        return _TIME.sub("2026-05-04T10:20:30.123456Z", value)
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return value


def main():
    text = PAGE.read_text()
    changed = 0
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        model = save_reward_model(home / "model")
        with running(model or home / "model", home / "state") as server:
            player = Player(home, server.urls)
            for block in blocks(text):
                outcome = player.play(block)
                if outcome.failure is not None:
                    print(f"line {block.line}: {outcome.failure!r}")
                    continue
                if block.answer is None:
                    continue
                kind, shown = block.answer.kind, block.answer.code
                if kind == "text":
                    written = outcome.err + outcome.out
                    same = masked(written) == masked(shown)
                else:
                    real = documents(outcome.out)
                    written = "\n".join(pretty(rounded(one)) for one in real) + "\n"
                    same = not differences(documents(shown), real)
                if same:
                    continue
                fence = f"```{kind}\n{shown}```"
                start = text.index(fence)
                # The same answer may be shown twice: each block's own is the next one.
                text = text[:start] + f"```{kind}\n{written}```" + text[start + len(fence) :]
                changed += 1
            if "client" in player.names:
                player.names["client"].close()
    PAGE.write_text(text)
    print(f"{changed} answers written anew")


if __name__ == "__main__":
    main()
