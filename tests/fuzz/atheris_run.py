"""One target under atheris.

python tests/fuzz/atheris_run.py TARGET [libFuzzer's flags and folders]
python tests/fuzz/atheris_run.py TARGET FILE     # an input again
"""

from __future__ import annotations

import sys
import warnings

import atheris

name = sys.argv.pop(1)
with atheris.instrument_imports(include=["r2m_service", "r2m"]):
    from fuzz_targets import TARGETS

    if name == "head_file":  # it loads torch, which the others need not wait for
        import r2m_service.modeling.head  # noqa: F401

warnings.simplefilter("ignore")
atheris.Setup(sys.argv, TARGETS[name])
atheris.Fuzz()
