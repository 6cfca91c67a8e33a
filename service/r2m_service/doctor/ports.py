"""The two addresses: whether they can be listened on, and who else reaches them."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket

from r2m_service.doctor.finding import Finding, Patient, ok, problem, warning


def check_http(patient: Patient) -> Finding:
    """HTTP's address."""
    return _check("http port", patient, patient.settings.http, "--http")


def check_grpc(patient: Patient) -> Finding:
    """gRPC's address, which must also be another than HTTP's."""
    grpc, http = patient.settings.grpc, patient.settings.http
    if grpc == http and not grpc.endswith(":0"):
        return problem("grpc port", f"{grpc} is HTTP's address too", "choose another with --grpc")
    return _check("grpc port", patient, grpc, "--grpc")


def check_ops(patient: Patient) -> Finding | None:
    """The address of probes, where there is one."""
    ops = patient.settings.ops
    if ops is None:
        return None
    if ops in (patient.settings.http, patient.settings.grpc) and not ops.endswith(":0"):
        return problem("ops port", f"{ops} is taken by HTTP or gRPC", "choose another with --ops")
    return _check("ops port", patient, ops, "--ops")


def _check(name: str, patient: Patient, address: str, flag: str) -> Finding:
    host, _, port = address.rpartition(":")
    try:
        family, _, _, _, place = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as listener:
            # As the server does: without it, a server that just ended would still hold the port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
    except OSError as error:
        return problem(name, f"{address}: {error.strerror or error}", _mend(error, flag))
    if ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback:
        return ok(name, f"{address} is free")
    if flag == "--ops" or patient.settings.keys is not None or not patient.settings.insecure:
        # Without keys and --insecure the server does not start; the check of keys says so.
        return ok(name, f"{address} is free, and open to other machines")
    return warning(
        name,
        f"{address} is free, and open to other machines: whoever reaches it can score, align and "
        "fetch heads, for there are no keys (--insecure)",
        "make keys (`r2m keys create`) and give --keys, or listen on 127.0.0.1",
    )


def _mend(error: OSError, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"end what listens there (another r2m serve?), or choose another port with {flag}"
    if error.errno == errno.EACCES:
        return f"choose a port above 1023 with {flag}"
    return f"give an address of this machine with {flag}: 127.0.0.1, 0.0.0.0, [::1], …"
