"""Where settings come from: flag, environment, TOML file, default; the first that has one wins.

A name that nobody knows is refused: a mistyped setting would otherwise be ignored in silence.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from r2m_service.settings import PREFIX, Settings, hidden

FILE_VARIABLE = f"{PREFIX}CONFIG"
FILE_HELP = f"TOML file of settings, their names as keys [env {FILE_VARIABLE}]"
OF_CLIENT = {
    "R2M_URL",
    "R2M_RUN",
    "R2M_FEEDBACK_RUN",
    "R2M_TIMEOUT",
    "R2M_API_KEY",
    "R2M_CA",
    "R2M_CERT",
    "R2M_CERT_KEY",
}
ELSEWHERE = frozenset({*OF_CLIENT, "R2M_DEMO_DEBUG", FILE_VARIABLE})
"""Variables of the client, of what it has for trainers, and of the demo: no settings of the server,
and no mistakes."""
OF_TESTS = "R2M_TEST_"

NAMES = tuple(Settings.model_fields)


class SettingsError(ValueError):
    """A setting that cannot be used: which, why, and what was expected, in one sentence.

    Attributes:
        missing: what was needed and not given, where that is all that is wrong.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class Origin(StrEnum):
    """Which of the four a value came from."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Given:
    """Values as they were written, not yet checked, and where each came from.

    Attributes:
        values: of the settings that were given, by name.
        origins: of all settings, by name.
        file: the TOML file, where one was named.
    """

    values: Mapping[str, Any]
    origins: Mapping[str, Origin]
    file: Path | None

    def settings(self, **stand_ins: Any) -> Settings:
        """The checked settings.

        Args:
            stand_ins: values for what is missing.

        Raises:
            SettingsError: a value that is wrong or missing, by the name under which it was given.
        """
        try:
            return Settings(**{**stand_ins, **self.values})
        except ValidationError as error:
            raise self._sentence(error) from None

    def spelled(self, name: str) -> str:
        """A setting as its source spells it: `--max-length` or `R2M_MAX_LENGTH`, for example."""
        origin = self.origins[name]
        if origin is Origin.ENVIRONMENT:
            return variable(name)
        if origin is Origin.FILE:
            return f"{name} in {self.file}"
        return f"--no-{flag(name)[2:]}" if self.values.get(name) is False else flag(name)

    def _sentence(self, error: ValidationError) -> SettingsError:
        found = error.errors()
        missing = tuple(str(one["loc"][0]) for one in found if one["type"] == "missing")
        wrong = [one for one in found if one["type"] != "missing"]
        if not wrong:
            name = missing[0]
            return SettingsError(
                f"{name} is needed: give {flag(name)}, {variable(name)}, or {name} in a file "
                "named by --config",
                missing,
            )
        name = str(wrong[0]["loc"][0])
        message = wrong[0]["msg"].removeprefix("Value error, ")
        # pydantic's sentence does not repeat the value, so hidden ones stay hidden.
        value = "" if hidden(name) else f", got {wrong[0]['input']!r}"
        return SettingsError(f"{self.spelled(name)}: {message}{value}")


def collect(flags: Mapping[str, Any], file: str | None = None) -> Given:
    """Put flags, environment and file together.

    Args:
        flags: by name; None where a flag was not given.
        file: of `--config`; None: what R2M_CONFIG names, if it does.

    Raises:
        SettingsError: a file that cannot be read, or a name that is no setting.
    """
    _refuse_unknown_variables(os.environ)
    named = os.environ.get(FILE_VARIABLE) if file is None else file
    path = Path(named).expanduser() if named else None
    layers = {
        Origin.FILE: {} if path is None else _read(path),
        Origin.ENVIRONMENT: EnvSettingsSource(Settings)(),
        Origin.FLAG: {name: value for name, value in flags.items() if value is not None},
    }
    values: dict[str, Any] = {}
    origins = dict.fromkeys(NAMES, Origin.DEFAULT)
    for origin, layer in layers.items():
        values.update(layer)
        origins.update(dict.fromkeys(layer, origin))
    return Given(values, origins, path)


def flag(name: str) -> str:
    """A setting's flag."""
    return f"--{name.replace('_', '-')}"


def variable(name: str) -> str:
    """A setting's environment variable."""
    return f"{PREFIX}{name.upper()}"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        # pydantic-settings would go on without it.
        raise SettingsError(f"there is no settings file {path}")
    try:
        values = dict(TomlConfigSettingsSource(Settings, path)())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no TOML: {error}") from None
    for key, value in values.items():
        if key in NAMES:
            if isinstance(value, bool) and Settings.model_fields[key].annotation is not bool:
                # pydantic would take true for the number 1.
                raise SettingsError(f"{path}: {key} is not true or false")
            continue
        if isinstance(value, dict):
            raise SettingsError(
                f"{path}: [{key}] is a table; settings stand at the top of the file, without one"
            )
        raise SettingsError(f"{path}: {_unknown(key, NAMES)}")
    return values


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = {variable(name): name for name in NAMES}
    mine = {name for name in environment if name.upper().startswith(PREFIX)}
    for name in sorted(mine - _of_kubernetes(mine)):
        theirs = name.upper() in ELSEWHERE or name.upper().startswith(OF_TESTS)
        if name.upper() not in known and not theirs:
            raise SettingsError(f"environment: {_unknown(name, [*known, FILE_VARIABLE])}")


def _of_kubernetes(names: set[str]) -> set[str]:
    """What Kubernetes puts into every pod for a service whose name starts with r2m.

    Told by its `…_SERVICE_HOST`, which comes with all the others: a lone R2M_HTTP_PORT is a
    mistake, not Kubernetes.
    """
    mark = "_SERVICE_HOST"
    services = [name.removesuffix(mark) for name in names if name.endswith(mark)]
    port = r"PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
    forms = [
        re.compile(rf"{re.escape(service)}_(SERVICE_HOST|SERVICE_PORT(_\w+)?|{port})")
        for service in services
    ]
    return {name for name in names if any(form.fullmatch(name) for form in forms)}


def _unknown(name: str, known: Iterable[str]) -> str:
    """The sentence for a name that nobody knows."""
    asked = name.replace("-", "_")
    plain = {one.lower(): one for one in known}
    (nearest,) = difflib.get_close_matches(asked.lower(), plain, n=1, cutoff=0.0)
    return f"{name} is no setting; the nearest is {plain[nearest]}"
