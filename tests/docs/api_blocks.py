"""docs/api.md taken apart, and its blocks run as a reader would run them, from top to bottom.

- `bash`: a script of its own for bash with `set -euo pipefail`; all share one folder. curl tells
  what it asked and was answered through a .curlrc; grpcurl is `grpcurl_shim`.
- `python`: all in one namespace. A `print(...)  # text` must print that text.
- `json` or `text`: what the `bash` block above it printed. The line before it states the HTTP
  status: "Answer, 200:".
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"
SHIM = pathlib.Path(__file__).with_name("grpcurl_shim.py")
HTTP, GRPC = "http://127.0.0.1:8080", "127.0.0.1:50051"
_CURLRC = 'write-out = "%{stderr}@@ %{method} %{url_effective} %{http_code}\\n"\n'
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STATUS = re.compile(r"Answer, (\d{3}):\Z")
_PRINTED = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)


@dataclass
class Block:
    """A fenced block. `answer` is the one below that shows what it prints; `status` its status."""

    kind: str
    code: str
    line: int
    status: int | None = None
    answer: Block | None = None

    @property
    def name(self):
        words = self.code.split()
        tool = next((one for one in ("grpcurl", "curl") if one in words), self.kind)
        return f"{tool}-line-{self.line}"


@dataclass
class Outcome:
    """What running a block gave: `calls` are (method, url, status) of curl, in order."""

    out: str = ""
    err: str = ""
    calls: list[tuple[str, str, int]] = field(default_factory=list)
    failure: BaseException | None = None


def blocks(text):
    """The blocks to run, each with its answer."""
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()].rstrip()
        block = Block(match[1], match[2], text.count("\n", 0, match.start()) + 1)
        if block.kind in ("json", "text"):
            asked = found[-1]
            stated = _STATUS.search(before)
            assert asked.answer is None, f"line {block.line}: a second answer to one block"
            assert asked.kind == "bash", f"line {block.line}: an answer to no command"
            asked.answer, asked.status = block, int(stated[1]) if stated else None
        else:
            assert block.kind in ("bash", "python"), f"line {block.line}: {block.kind}"
            found.append(block)
    return found


class Player:
    """Runs blocks against a server.

    Args:
        folder: where bash runs, empty.
        urls: of the server, by kind.
    """

    def __init__(self, folder, urls):
        self.work, self.rpcs = folder / "work", folder / "rpcs"
        self.names = {"__name__": "docs.api"}
        self._urls = {HTTP: urls["http"], GRPC: urls["grpc"].removeprefix("grpc://")}
        for made in (self.work, folder / "bin"):
            made.mkdir()
        self.rpcs.touch()
        (folder / ".curlrc").write_text(_CURLRC)
        grpcurl = folder / "bin" / "grpcurl"
        shim = shlex.join([sys.executable, "-E", str(SHIM)])
        grpcurl.write_text(f'#!/bin/sh\nexec {shim} "$@"\n')
        grpcurl.chmod(0o755)
        paths = [str(folder / "bin"), os.environ["PATH"], str(pathlib.Path(sys.executable).parent)]
        path = os.pathsep.join(paths)
        assert shutil.which("buf", path=path), "buf is not installed: pip install -e '.[dev]'"
        self._environment = {
            **os.environ,
            "PATH": path,
            "no_proxy": "127.0.0.1",
            "CURL_HOME": str(folder),
            "GRPCURL_LOG": str(self.rpcs),
        }

    def play(self, block):
        """Run a block; what it raises is kept in its outcome."""
        outcome = Outcome()
        code = block.code
        for documented, real in self._urls.items():
            code = code.replace(documented, real)
        try:
            (self._python if block.kind == "python" else self._bash)(block, code, outcome)
        except Exception as error:
            outcome.failure = error
        return outcome

    def _python(self, block, code, outcome):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * block.line + code, str(PAGE), "exec"), self.names)
        outcome.out = printed.getvalue()

    def _bash(self, block, code, outcome):
        if code.startswith("#!"):  # a file to be saved: the blocks below it run it
            (self.work / "loop.sh").write_text(code)
            return
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=self.work, env=self._environment, capture_output=True, text=True, timeout=20,
            check=False,
        )  # fmt: skip
        said = done.stderr.splitlines(keepends=True)
        outcome.out = done.stdout
        outcome.err = "".join(line for line in said if not line.startswith("@@ "))
        for line in said:
            if line.startswith("@@ "):
                _, method, url, status = line.split()
                outcome.calls.append((method, url, int(status)))
        if done.returncode:
            raise AssertionError(f"exit status {done.returncode}: {outcome.err}{outcome.out}")


def promised(block):
    """What a python block's comments say it prints, line by line."""
    return _PRINTED.findall(block.code)


def documents(text):
    """The JSON documents that stand one behind the other in a text."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found
