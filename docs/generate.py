"""Write the pages that the code knows best: errors, settings, metrics, and the OpenAPI document.

python docs/generate.py            # write them
python docs/generate.py --check    # fail where one is out of date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from r2m.errors import TABLE
from r2m_service.settings import Settings
from r2m_service.sources import FILE_VARIABLE, flag, variable
from r2m_service.telemetry.catalogue import CATALOGUE
from r2m_service.transports.http.app import build_app
from r2m_service.transports.interface import Application

DOCS = Path(__file__).resolve().parent


def errors() -> str:
    """The error table as a page."""
    lines = [
        "# Errors",
        "",
        "Generated from `proto/r2m/errors.py` by `make docs`.",
        "",
        "A call that fails has one of these codes, the same over HTTP and gRPC. A sample that",
        "cannot be used has one beside its id, and the other samples of the call are answered.",
        "",
        '- HTTP: the status below, and `{"error": {"code", "message", "retryable", "field"?}}`.',
        "- gRPC: the status below, the message as its details, and a `google.rpc.ErrorInfo` with",
        '  `domain` "r2m", `reason` = the code, and `metadata` `field` and `retryable`.',
        "",
        "*Retry*: the very same request can succeed later with nothing changed. The Python client",
        "does so by itself; score is pure and align is answered once, so repeating is safe.",
        "",
        "| code | HTTP | gRPC | retry | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{code}` | {row.http} | {row.grpc} | {'yes' if row.retryable else ''} | {row.meaning} |"
        for code, row in TABLE.items()
    ]
    return "\n".join(lines) + "\n"


def settings() -> str:
    """All settings of `r2m serve` as a page."""
    lines = [
        "# Settings of `r2m serve`",
        "",
        "Generated from `service/r2m_service/settings.py` by `make docs`.",
        "",
        "A setting is given by a flag, by an environment variable, or in a TOML file that is",
        f"named by `--config` or `{FILE_VARIABLE}`; a flag wins over the environment, that over",
        "the file, that over the default. Names that are no setting are refused in all three. An",
        "empty variable counts as none. Relative paths start where the server is started, those in",
        "a file too.",
        "",
        "```",
        "r2m config --config r2m.toml    # every setting, its value, and where it came from",
        "r2m doctor --config r2m.toml    # what would stop the server, and how to mend it",
        "r2m serve --config r2m.toml",
        "```",
        "",
        "`r2m config` and `r2m doctor` take the flags of `r2m serve`, and `--json`; `r2m doctor`",
        "takes `--no-model` too, which leaves out the slow part, and `--deep` and `--repair` for",
        "the heads' files (docs/operations.md). Both exit with 1 where the server would not start.",
        "",
        "| name in a file | flag | environment | default | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        default = "(required)" if field.is_required() else field.default
        shown = "" if default is None else f"`{_toml(default, quote=False)}`"
        flags = f"`{flag(name)}`"
        if field.annotation is bool:
            flags += f", `--no-{flag(name)[2:]}`"
        lines.append(f"| `{name}` | {flags} | `{variable(name)}` | {shown} | {field.description} |")
    lines += ["", "A file with every setting; what is commented out is the default or an example:"]
    return "\n".join([*lines, "", "```toml", *_example(), "```"]) + "\n"


def _example() -> list[str]:
    lines: list[str] = []
    for name, field in Settings.model_fields.items():
        value = field.default if field.examples is None else field.examples[0]
        lines.append(f"{'' if field.is_required() else '# '}{name} = {_toml(value)}")
    return lines


def _toml(value: object, *, quote: bool = True) -> str:
    """A value as TOML, which for ours is JSON."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False) if quote else str(value)


def openapi() -> str:
    """The REST interface as OpenAPI."""
    # Only the routes are asked for, so nothing of an application need be behind them.
    nothing = SimpleNamespace(require_ready=None)
    app = build_app(cast("Application", nothing), max_body_bytes=1 << 30)
    document: dict[str, Any] = app.openapi()
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def metrics() -> str:
    """All metrics as a page."""
    lines = [
        "# Metrics",
        "",
        "Generated from `service/r2m_service/telemetry/catalogue.py` by `make docs`.",
        "",
        "`GET /metrics` on the HTTP address: Prometheus' text, or OpenMetrics for who asks for it.",
        "Seconds and bytes; shares are 0 … 1. A number that is not there has no sample: a head at",
        "step 0 has no loss, a run without anchors no accuracy. Counters begin at 0 with the",
        "process; what is said of a run's step, heads, labels and evidence is read from the",
        "registry, so it survives a restart, and every replica exports the same: aggregate a run's",
        "gauges with `max by (run)` and its counters with `sum by (run)`. `r2m_run_reward_…` are",
        "gauges of what each process scored: `avg by (run, kind)`. The process's own metrics",
        "(`process_…`) are there too, on Linux.",
        "",
        "Every label has a closed set of values but `run`. At most `--metrics-runs` runs are shown",
        "one by one, those used last; a run keeps its place until it was idle for ten minutes.",
        "A head's number is a value, never a label.",
        "",
        "`observability/` has a Grafana dashboard (`r2m.json`), rules (`rules.yaml`; what to do is",
        "in [operations.md](operations.md#alerts)) and a Prometheus configuration for them.",
    ]
    for title, found in CATALOGUE.items():
        lines += ["", f"## {title}", "", "| metric | kind | labels | meaning |"]
        lines += ["| --- | --- | --- | --- |"]
        lines += [
            f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} "
            f"| {one.help} |"
            for one in found
        ]
    return "\n".join(lines) + "\n"


PAGES = {
    "errors.md": errors,
    "settings.md": settings,
    "metrics.md": metrics,
    "openapi.json": openapi,
}


def main() -> int:
    """Write or compare; 1 where a page is out of date."""
    stale: list[str] = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(f"docs/{name}")
    if stale:
        print(f"out of date: {', '.join(stale)}; run make docs")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
