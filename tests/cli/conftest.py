import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from r2m_service import cli

QUIET = ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """Nothing from the environment the tests run in, but what names no setting of a server."""
    for name in [name for name in os.environ if name.upper().startswith("R2M_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def r2m():
    """Runs a command of the service in this process."""

    def run(command, *args):
        result = CliRunner().invoke(getattr(cli, command), [str(arg) for arg in args])
        # Anything but an exit is a stack trace to the user.
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return result

    return run


@pytest.fixture
def r2m_process():
    """Runs a command as a process of its own.

    Not by the `r2m` script: which commands that knows depends on what was installed when.
    """

    def run(command, *args, **environment):
        code = f"from r2m_service.cli import {command}; {command}(prog_name='r2m {command}')"
        # As a user's: the tests' own conftest silences libraries.
        inherited = {key: value for key, value in os.environ.items() if key not in QUIET}
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, args)],
            env={**inherited, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run
