"""`r2m serve` with keys, TLS and an address for probes, as a process; and what it refuses to be."""

import json
import signal
import socket
import subprocess
import time

import httpx
import pytest
from support.certificates import Authority
from support.processes import R2M, Process, free_port

from r2m_client import Client, Forbidden, Unauthenticated
from r2m_service.access.keyfile import KeyFile
from r2m_service.domain.access import Scope


def test_keys_tls_and_probes_of_a_running_server(reward_model, tmp_path):
    authority = Authority(tmp_path / "ca")
    cert, key = authority.issue("server")
    own = authority.issue("trainer", "trainer")
    keys = KeyFile(tmp_path / "keys.json")
    row, text = keys.create("trainer", Scope.ALIGN, runs=["mine"])
    _, boss = keys.create("boss", Scope.ADMIN)
    ops = f"http://127.0.0.1:{free_port()}"
    server = Process(
        reward_model, tmp_path / "state", "--keys", str(keys.path), "--tls-cert", str(cert),
        "--tls-key", str(key), "--tls-client-ca", str(authority.ca), "--ops", ops[7:],
    )  # fmt: skip
    where = [url.replace("://", "s://") for url in (server.http, server.grpc)]
    try:
        ready(ops, server.process)
        assert httpx.get(f"{ops}/readyz").json()["limits"]
        assert httpx.get(f"{ops}/v1/runs").status_code == 404
        files = {"ca": authority.ca, "cert": own}
        for url in where:
            with Client(url, **files) as client, pytest.raises(Unauthenticated):
                client.server()
            with Client(url, **files, api_key=text) as client:
                client.create_run("mine", feedback="backbone", method={"width": 16})
                assert [run.run for run in client.runs()] == ["mine"]
                with pytest.raises(Forbidden, match="bound to other runs"):
                    client.run("theirs")
            with Client(url, **files, api_key=boss) as client:
                client.create_run("theirs", feedback="none")
                client.freeze("mine", reason=url)
                client.unfreeze("mine")
                changes = [(one.what, one.caller, one.reason) for one in client.changes("mine")]
                assert changes[0] == ("created", "trainer", None)
                assert changes[-2:] == [("frozen", "boss", url), ("unfrozen", "boss", None)]
        # The command, as a trainer's shell has it; the key is nowhere in what it says.
        listed = command("runs", "--json", "--url", where[0], "--ca", authority.ca,
                         "--cert", own[0], "--cert-key", own[1], "--key", text)  # fmt: skip
        assert [run["run"] for run in json.loads(listed.stdout)] == ["mine"]
        clients = [Client(url, **files, api_key=text) for url in where]
        for client in clients:
            client.run("mine")
        revoked = command("keys", "revoke", "--keys", keys.path, row.id)
        assert revoked.returncode == 0
        for client in clients:
            with pytest.raises(Unauthenticated, match="revoked"):
                client.run("mine")
            client.close()
    finally:
        code, output = server.end(signal.SIGTERM)
    assert code == 0
    assert f"probes on {ops}" in output
    assert "Traceback" not in output
    assert text not in output
    assert boss not in output


def ready(ops, process):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        try:
            if httpx.get(f"{ops}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("not ready")


def command(*args):
    # Where `r2m` was installed before this command was, its entry point is not known.
    start = "from r2m_service.cli import keys; keys(prog_name='r2m keys')"
    begin = [R2M[0], "-c", start] if args[0] == "keys" else [*R2M, args[0]]
    return subprocess.run(
        [*begin, *map(str, args[1:])], capture_output=True, text=True, timeout=60, check=False
    )


def test_what_a_server_refuses_to_be(tmp_path):
    authority = Authority(tmp_path / "ca")
    cert, _ = authority.issue("server")
    ended = authority.issue("ended", ended=True)
    none = KeyFile(tmp_path / "none-valid.json")
    none.revoke(none.create("n", Scope.SCORE)[0].id)
    for flags, says in (
        (("--http", "0.0.0.0:0"), "there are no keys: give --keys"),
        (("--grpc", "[::]:0"), "or say --insecure"),
        (("--keys", tmp_path / "missing.json"), "there is no file of keys"),
        (("--keys", cert), "is no list of keys"),
        (("--keys", none.path), "there is no valid key"),
        (("--tls-cert", cert), "go together"),
        (("--tls-cert", cert, "--tls-key", ended[1]), "is not the key of the certificate"),
        (("--tls-cert", ended[0], "--tls-key", ended[1]), "certificate has expired"),
        (("--tls-client-ca", authority.ca), "needs --tls-cert and --tls-key"),
        (("--ops", "nowhere"), "--ops: is HOST:PORT"),
    ):
        # The model is not there: what is wrong with access is said first, before it is looked for.
        done = command("serve", "--model", tmp_path / "no-model", "--state", tmp_path / "s", *flags)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: ")
        assert says in line
        assert not (tmp_path / "s").exists()


def test_it_says_who_may_call_and_which_address_is_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = command(
            "serve", "--model", tmp_path, "--state", tmp_path / "s", "--http", "0.0.0.0:0",
            "--grpc", "127.0.0.1:0", "--insecure", "--ops", address,
        )  # fmt: skip
    assert done.returncode == 1
    said, refused = done.stderr.splitlines()
    assert "WARNING r2m access: --insecure: no keys, and --http 0.0.0.0:0 is open to others" in said
    assert refused.startswith(f"Error: cannot listen on {address}")
    assert refused.endswith("choose another with --ops")
