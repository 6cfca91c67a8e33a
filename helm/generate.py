"""Write what the chart has from elsewhere: the schema's settings, the dashboards, the rules.

python helm/generate.py            # write it
python helm/generate.py --check    # fail where something is out of date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import yaml

from r2m_service.settings import Settings

HELM = Path(__file__).resolve().parent
CHART = HELM / "r2m"
OBSERVABILITY = HELM.parent / "observability"
"""Dashboards and rules; Helm reads nothing outside the chart's folder, so they are copied."""

OWNED = {
    "model", "head", "state", "registry", "blobs", "http", "grpc", "ops", "device",
    "keys", "insecure", "tls_cert", "tls_key", "tls_client_ca",
}  # fmt: skip
"""Settings that the chart decides by other values: mounts, ports and Secrets hang on them."""


def schema() -> str:
    """The schema of the chart's values."""
    document: dict[str, Any] = yaml.safe_load((HELM / "schema.yaml").read_text())
    document["properties"]["settings"] = settings()
    note = "Generated from helm/schema.yaml and service/r2m_service/settings.py by `make docs`."
    return json.dumps({"$comment": note, **document}, indent=1, ensure_ascii=False) + "\n"


def settings() -> dict[str, Any]:
    """The server's settings as a schema."""
    fields: dict[str, dict[str, Any]] = Settings.model_json_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["drain_seconds"],  # the pod's grace period hangs on it
        "properties": {name: _plain(field) for name, field in fields.items() if name not in OWNED},
    }


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    """A field without what is pydantic's alone, and without null: left out, it is the default."""
    kinds = cast("list[dict[str, Any]]", field.get("anyOf", [field]))
    (kind,) = [one for one in kinds if one["type"] != "null"]
    keep = ("type", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum")
    found = {key: kind[key] for key in keep if key in kind}
    default = {} if field.get("default") is None else {"default": field["default"]}
    return {**found, **default, "description": field["description"]}


def wanted() -> dict[Path, str]:
    """Every generated file and its content."""
    files = {CHART / "values.schema.json": schema()}
    for source in sorted(OBSERVABILITY.glob("*.json")):
        files[CHART / "files" / "dashboards" / source.name] = source.read_text()
    rules = OBSERVABILITY / "rules.yaml"
    if rules.exists():
        files[CHART / "files" / "rules" / "r2m.yaml"] = rules.read_text()
    return files


def main() -> int:
    """Write or compare; 1 where a file is out of date."""
    files = wanted()
    stale = [path for path, text in files.items() if not _holds(path, text)]
    left = [path for path in (CHART / "files").rglob("*.*") if path not in files]
    if "--check" in sys.argv[1:]:
        if stale or left:
            names = ", ".join(str(path.relative_to(CHART)) for path in [*stale, *left])
            print(f"out of date in {CHART.name}: {names}; run make docs")
        return 1 if stale or left else 0
    for path in left:
        path.unlink()
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
