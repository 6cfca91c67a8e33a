"""TLS and mutual TLS on both transports, and what the client says of every way to get it wrong."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from datetime import UTC, datetime

import pytest
from support.certificates import Authority
from transport_fakes import FakeApplication

from r2m_client import AsyncClient, Client, Forbidden, Sample, TLSError, Unauthenticated
from r2m_service.access.errors import AccessError
from r2m_service.access.tls import load_tls
from r2m_service.domain.access import Key, Scope, digest, new_text
from r2m_service.listeners import HttpServer, add_grpc_port, bind
from r2m_service.transports.access import Gate
from r2m_service.transports.grpc.server import build_grpc
from r2m_service.transports.http.app import build_app


@contextlib.contextmanager
def running(*, tls=None, gate=None):
    """Both transports on sockets, in a thread: their ports."""
    started, ports = threading.Event(), {}

    async def main():
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        ports["stop"] = lambda: loop.call_soon_threadsafe(stop.set)
        application = FakeApplication()
        app = build_app(application, max_body_bytes=8 << 20, gate=gate)
        http = HttpServer(app, drain_seconds=1, tls=tls.context if tls else None)
        server = build_grpc(application, max_message_bytes=8 << 20, gate=gate)
        ports["grpc"] = add_grpc_port(server, "127.0.0.1:0", tls)
        await server.start()
        listener = bind("127.0.0.1:0", "--http")
        ports["http"] = listener.getsockname()[1]
        serving = asyncio.ensure_future(http.serve(sockets=[listener]))
        while not http.started:
            await asyncio.sleep(0.005)
        started.set()
        await stop.wait()
        http.should_exit = True
        await server.stop(1)
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert started.wait(30)
        yield ports
    finally:
        ports["stop"]()
        thread.join()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "theirs")


@pytest.fixture(scope="module")
def plain():
    with running() as ports:
        yield ports


@pytest.fixture(scope="module")
def secure(authority):
    with running(tls=load_tls(*authority.issue("server"), None)) as ports:
        yield ports


@pytest.fixture(scope="module")
def mutual(authority):
    with running(tls=load_tls(*authority.issue("mutual"), authority.ca)) as ports:
        yield ports


SCHEMES = pytest.mark.parametrize("kind", ["http", "grpc"])


def url(ports, kind, *, tls, host="127.0.0.1"):
    return f"{kind}{'s' if tls else ''}://{host}:{ports[kind]}"


def calls(where, **files):
    """The failures of one call of each client; without any, None."""
    found = []
    try:
        # With repeats and time enough: what must be told at once is told by the first attempt.
        with Client(where, timeout=60, **files) as client:
            assert [one.run for one in client.runs()] == ["a", "b"]
    except TLSError as error:
        found.append(error)

    async def once():
        async with AsyncClient(where, timeout=60, **files) as client:
            assert [one.run for one in await client.runs()] == ["a", "b"]

    try:
        asyncio.run(once())
    except TLSError as error:
        found.append(error)
    assert len(found) in (0, 2)
    for one in found:
        assert one.tried == ""  # there was one attempt
    assert len({str(one) for one in found}) <= 1
    return found[0] if found else None


@SCHEMES
def test_tls(secure, authority, kind):
    assert calls(url(secure, kind, tls=True), ca=authority.ca) is None
    assert calls(url(secure, kind, tls=True, host="localhost"), ca=str(authority.ca)) is None


@SCHEMES
def test_mutual_tls(mutual, authority, tmp_path, kind):
    cert, key = authority.issue("client", "trainer-7")
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    for own in ((cert, key), both):
        assert calls(url(mutual, kind, tls=True), ca=authority.ca, cert=own) is None


@SCHEMES
def test_a_plain_text_client_at_a_tls_port_hears_so(secure, mutual, kind):
    for ports in (secure, mutual):
        where = url(ports, kind, tls=False)
        right = url(ports, kind, tls=True)
        said = f"{where} speaks TLS alone: the URL may have to be {right}"
        assert str(calls(where)) == said


@SCHEMES
def test_a_tls_client_at_a_plain_text_port_hears_so(plain, authority, kind):
    where = url(plain, kind, tls=True)
    right = url(plain, kind, tls=False)
    said = f"{where} speaks no TLS: the URL may have to be {right}"
    assert str(calls(where, ca=authority.ca)) == said


@SCHEMES
def test_a_server_of_another_ca_is_not_trusted(secure, stranger, kind):
    for files in ({"ca": stranger.ca}, {}):
        error = calls(url(secure, kind, tls=True), **files)
        assert "is not trusted" in str(error)
        assert "--ca" in str(error)


@SCHEMES
def test_a_server_of_another_name_is_not_trusted(authority, kind):
    with running(tls=load_tls(*authority.issue("elsewhere", "r2m.example"), None)) as ports:
        assert "is not trusted" in str(calls(url(ports, kind, tls=True), ca=authority.ca))


@SCHEMES
def test_a_client_without_a_certificate_or_with_one_of_another_ca(
    mutual, authority, stranger, kind
):
    for cert in (None, stranger.issue("spy", "spy")):
        error = calls(url(mutual, kind, tls=True), ca=authority.ca, cert=cert)
        assert "may want a client's certificate of its own CA" in str(error)


def test_a_stream_says_the_same(secure, mutual, authority):
    for ports, tls, files, says in (
        (secure, False, {}, "speaks TLS alone"),
        (mutual, True, {"ca": authority.ca}, "may want a client's certificate"),
    ):
        where = url(ports, "grpc", tls=tls)
        with (
            Client(where, **files) as client,
            pytest.raises(TLSError, match=says),
            client.score_stream() as stream,
        ):
            stream.put(Sample("x", "p", "r"))

        async def over(where=where, files=files):
            async with AsyncClient(where, **files) as client, client.score_stream() as stream:
                await stream.put(Sample("x", "p", "r"))

        with pytest.raises(TLSError, match=says):
            asyncio.run(over())


@SCHEMES
def test_keys_over_tls(authority, monkeypatch, kind):
    identity, text = new_text()
    key = Key(identity, "n", Scope.SCORE, None, digest(text), datetime.now(UTC))

    class Keys:
        def find(self, asked):
            return key if asked == identity else None

    with running(tls=load_tls(*authority.issue("keyed"), None), gate=Gate(Keys())) as ports:
        where, ca = url(ports, kind, tls=True), authority.ca
        monkeypatch.delenv("R2M_API_KEY", raising=False)
        with Client(where, ca=ca) as client, pytest.raises(Unauthenticated) as caught:
            client.runs()
        assert caught.value.status == 401
        with Client(where, ca=ca, api_key=f"{text}\n") as client:
            client.runs()
            with pytest.raises(Forbidden) as caught:
                client.rollback("a", to=0, reason="r")
            assert isinstance(caught.value, PermissionError)
            assert text not in repr(vars(client)) + repr(caught.value)
        monkeypatch.setenv("R2M_API_KEY", text)
        monkeypatch.setenv("R2M_CA", str(ca))
        with Client(where) as client:
            client.runs()


def test_files_that_cannot_be_used_are_named_before_anything_is_sent(authority, stranger, tmp_path):
    cert, key = authority.issue("mine", "mine")
    other = stranger.issue("other", "other")[1]
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for scheme in ("https", "grpcs"):
        for files, says in (
            ({"ca": tmp_path / "none"}, "ca .*none is not there"),
            ({"ca": nonsense}, "ca .*nonsense.pem holds no certificate"),
            ({"cert": cert}, "cert .* cannot be used"),
            ({"cert": (cert, other)}, "key values mismatch"),
            ({"cert": (cert, tmp_path / "none")}, "key of cert .* is not there"),
        ):
            with pytest.raises(ValueError, match=says):
                Client(f"{scheme}://127.0.0.1:1", **files)
    with pytest.raises(ValueError, match="are for TLS"):
        Client("http://127.0.0.1:1", cert=(cert, key))
    for wrong in ("a b", "ä", "a\nb"):
        with pytest.raises(ValueError, match="characters that no key has") as caught:
            Client("http://127.0.0.1:1", api_key=wrong)
        assert wrong not in str(caught.value)
    with pytest.raises(ValueError, match="not both"):
        Client("http://127.0.0.1:1", api_key="k", headers={"authorization": "x"})


def test_server_files_that_cannot_be_used_are_named(authority, stranger, tmp_path):
    cert, key = authority.issue("good")
    ended = authority.issue("ended", "127.0.0.1", ended=True)
    other = stranger.issue("another")[1]
    nonsense, locked = tmp_path / "nonsense.pem", tmp_path / "locked.key"
    nonsense.write_text("nonsense")
    locked.write_text(LOCKED)
    for files, says in (
        ((cert, None, None), "go together"),
        ((None, key, None), "go together"),
        ((None, None, authority.ca), "--tls-client-ca needs --tls-cert and --tls-key"),
        ((tmp_path / "none", key, None), "--tls-cert .*none cannot be read: No such file"),
        ((cert, tmp_path, None), "--tls-key .* cannot be read: Is a directory"),
        ((cert, other, None), "--tls-key .* is not the key of the certificate"),
        ((nonsense, key, None), "--tls-cert .* holds no certificate"),
        ((cert, nonsense, None), "--tls-key .* holds no private key"),
        ((key, cert, None), "--tls-cert .* holds no certificate"),
        ((cert, locked, None), "locked with a password"),
        ((*ended, None), "certificate has expired"),
        ((cert, key, nonsense), "--tls-client-ca .* holds no certificate"),
        ((cert, key, tmp_path / "none"), "--tls-client-ca .*none cannot be read"),
    ):
        with pytest.raises(AccessError, match=says):
            load_tls(*files)
    assert load_tls(None, None, None) is None
    tls = load_tls(cert, key, None)
    assert tls.not_after > datetime.now(UTC)
    assert "PRIVATE" not in repr(tls)


# The form of one; no key is in it.
LOCKED = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAgAAAAAAAAAAAICCAAw
-----END ENCRYPTED PRIVATE KEY-----
"""
