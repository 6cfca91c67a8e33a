"""Packages that only some settings need, and which extra of ours brings each.

`r2m serve` refuses with these sentences before it loads a model, and `r2m doctor` reports them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from r2m_service.registry import blobs, engine
from r2m_service.settings import Settings

PACKAGE = "r2m-serve"
EXTRAS = {
    "psycopg": "postgres",
    "s3fs": "s3",
    "r2m_service.journal.writer": "journal",
    "r2m_service.telemetry.tracing": "otel",
}
"""The extra that installs what a module needs; docs/deploy.md lists them."""


@dataclass(frozen=True, slots=True)
class MissingPackages:
    """What the settings need and Python cannot import.

    Attributes:
        settings: names of the settings that need them.
        found: which setting needs which package.
        mend: the command that installs them.
    """

    settings: frozenset[str]
    found: str
    mend: str

    def __str__(self) -> str:
        return f"{self.found}: {self.mend}"


def missing_packages(settings: Settings) -> MissingPackages | None:
    """Import every package that the settings need; None where all of them are there."""
    modules = {
        "registry": engine.driver_module(settings.registry_location),
        "blobs": blobs.driver_module(settings.blobs_url),
        "journal": settings.journal and "r2m_service.journal.writer",
        "otlp_endpoint": settings.otlp_endpoint and "r2m_service.telemetry.tracing",
    }
    sentences: dict[str, str] = {}
    extras: set[str] = set()
    others: set[str] = set()
    for setting, module in modules.items():
        if not module:
            continue
        try:
            import_module(module)
        except ImportError as error:
            package = error.name if isinstance(error, ModuleNotFoundError) else None
            package = package or module
            sentence = f"--{setting.replace('_', '-')} needs the package {package}"
            if not isinstance(error, ModuleNotFoundError):
                why = str(error).partition("\n")[0]
                sentence += f", which cannot be imported ({why})"
            sentences[setting] = sentence
            if module in EXTRAS:
                extras.add(EXTRAS[module])
            else:
                others.add(package.partition(".")[0])
    if not sentences:
        return None
    ours = [f"'{PACKAGE}[{','.join(sorted(extras))}]'"] if extras else []
    mend = " ".join(["pip install", *ours, *sorted(others)])
    return MissingPackages(frozenset(sentences), "; ".join(sentences.values()), mend)
