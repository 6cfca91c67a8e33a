"""What would stop `r2m serve`, found before it is started, and how to mend it.

A check looks at one thing and returns a Finding, or None where it does not apply or an earlier
problem stands in its way. Checks leave everything as it is: what they write they remove. Only a
repair changes something, and only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from r2m_service.doctor.access import check_keys, check_tls
from r2m_service.doctor.finding import Finding, Level, Line, Patient, ok, problem, warning
from r2m_service.doctor.heads import check_heads
from r2m_service.doctor.host import (
    check_clock,
    check_extras,
    check_memory,
    check_packages,
    check_python,
    check_threads,
)
from r2m_service.doctor.model import (
    check_chat_template,
    check_device,
    check_dtype,
    check_first_pass,
    check_model,
    check_weights,
)
from r2m_service.doctor.ports import check_grpc, check_http, check_ops
from r2m_service.doctor.storage import (
    check_blobs,
    check_database,
    check_disk,
    check_journal,
    check_runs,
    check_state,
)
from r2m_service.settings import Settings

__all__ = ["Finding", "Level", "Line", "Patient", "examine", "ok", "problem", "warning"]

Check = Callable[[Patient], Finding | None]

# In this order: later checks use what earlier ones put into the patient.
CHECKS: tuple[tuple[str, Check], ...] = (
    ("python", check_python),
    ("packages", check_packages),
    ("extras", check_extras),
    ("device", check_device),
    ("dtype", check_dtype),
    ("threads", check_threads),
    ("model", check_model),
    ("memory", check_memory),
    ("weights", check_weights),
    ("chat template", check_chat_template),
    ("first pass", check_first_pass),
    ("state", check_state),
    ("database", check_database),
    ("runs", check_runs),
    ("blobs", check_blobs),
    ("heads", check_heads),
    ("disk", check_disk),
    ("journal", check_journal),
    ("http port", check_http),
    ("grpc port", check_grpc),
    ("ops port", check_ops),
    ("keys", check_keys),
    ("tls", check_tls),
    ("clock", check_clock),
)


def examine(
    settings: Settings,
    *,
    load_model: bool = True,
    say: Callable[[str], None] = lambda _: None,
    deep: bool = False,
    repair: bool = False,
    heads: list[Line] | None = None,
) -> Iterator[Finding]:
    """Run the checks one by one.

    Args:
        load_model: without it, the model is judged by its configuration alone.
        say: hears what is being done.
        deep: read every file of every head, and compare its hash.
        repair: mend what is wrong with heads.
        heads: gets what is wrong with heads, line by line.
    """
    patient = Patient(
        settings,
        load_model=load_model,
        say=say,
        deep=deep or repair,
        repair=repair,
        heads=[] if heads is None else heads,
    )
    for name, check in CHECKS:
        say(f"checking: {name}")
        try:
            finding = check(patient)
        except Exception as error:  # whatever a broken package, driver or model may raise
            first = str(error).strip().partition("\n")[0]
            finding = problem(
                name,
                f"the check failed: {type(error).__name__}: {first}",
                "see what the error names; if nothing there is wrong, please report it",
            )
        if finding is not None:
            yield finding
