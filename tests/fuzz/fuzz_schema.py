"""Schemathesis over the OpenAPI document of a real server: every operation, and chains of them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
CHECKS = (
    "not_a_server_error",
    "response_schema_conformance",
    "content_type_conformance",
    "unsupported_method",
    "one_form_of_errors",
)


def schemathesis(url, *, seconds, phases="coverage,fuzzing,stateful", seed=None):
    """Run it; the finished process, its words in `stdout`."""
    command = [
        str(pathlib.Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{url}/openapi.json",
        f"--phases={phases}",
        f"--checks={','.join(CHECKS)}",
        f"--max-time={seconds}",
        "--warnings=off",
        "--suppress-health-check=all",
        "--generation-database=none",
        *([] if seed is None else [f"--seed={seed}"]),
    ]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "schema_hooks",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "100",
    }
    with tempfile.TemporaryDirectory() as folder:  # it leaves a cache where it runs
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False, timeout=seconds + 120, cwd=folder,
        )  # fmt: skip
