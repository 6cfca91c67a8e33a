"""Keys and certificates: whether they can be used, and whether others can change them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from r2m_service.access.errors import AccessError
from r2m_service.access.keyfile import KeyFile, open_keys, open_to_others
from r2m_service.access.opening import exposed_addresses
from r2m_service.access.tls import load_tls
from r2m_service.doctor.finding import Finding, Patient, ok, problem, warning
from r2m_service.domain.access import Standing

SOON = timedelta(days=14)


def check_tls(patient: Patient) -> Finding | None:
    """The certificate, its key, and the CA of clients."""
    settings = patient.settings
    try:
        tls = load_tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    except AccessError as error:
        return problem("tls", str(error), "give files that can be used, or leave TLS out")
    if tls is None:
        if settings.keys is None or not (exposed := exposed_addresses(settings)):
            return None
        return warning(
            "tls",
            f"keys travel to {' and '.join(exposed)} in plain text",
            "give --tls-cert and --tls-key, or put a proxy with TLS in front",
        )
    until = f"{tls.not_after:%Y-%m-%d}"
    if tls.not_after - datetime.now(UTC) < SOON:
        return warning("tls", f"{settings.tls_cert} ends on {until}", "renew it, then restart")
    mutual = ", clients need one too" if tls.client_ca is not None else ""
    return ok("tls", f"{settings.tls_cert} fits its key and is valid until {until}{mutual}")


def check_keys(patient: Patient) -> Finding:
    """The keys, and whether the server may listen without any."""
    settings = patient.settings
    if settings.keys is None:
        exposed = exposed_addresses(settings)
        if not exposed:
            return ok("keys", "none: whoever is on this machine may call")
        if settings.insecure:
            return ok("keys", "none, and --insecure says that this is meant")
        return problem(
            "keys",
            f"none, and {' and '.join(exposed)} is open to other machines",
            "make some (`r2m keys create`) and give --keys, listen on 127.0.0.1, or say --insecure",
        )
    try:
        keys = open_keys(settings.keys)
    except AccessError as error:
        return problem("keys", str(error), "`r2m keys create` makes a file of keys")
    now = datetime.now(UTC)
    valid = sum(key.standing(now) is Standing.VALID for key in keys.all())
    found = f"{valid} of {len(keys.all())} are valid"
    if valid == 0:
        return problem("keys", found, "make one: `r2m keys create`")
    if isinstance(keys, KeyFile):
        may = open_to_others(keys.path)
        mend = f"chmod 600 {keys.path}"
        if may == "write":
            return problem(
                "keys", f"other users may change {keys.path}, and let themselves in", mend
            )
        if may == "read":
            # Hashes of keys nobody can guess: no more than who has which scope.
            return warning("keys", f"other users may read {keys.path}: names and scopes", mend)
    return ok("keys", found)
