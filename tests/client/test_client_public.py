"""The package from outside: its names, what importing it costs, and the URLs it takes."""

import inspect
import ssl
import subprocess
import sys

import pytest

import r2m_client
from r2m_client import AsyncClient, Client
from r2m_client._transport import parse_url

PUBLIC = [
    "Accuracy",
    "AliasInfo",
    "AliasMoved",
    "AlignConflict",
    "AlignProgress",
    "AlignResult",
    "AnchorStates",
    "AnchorsInfo",
    "AnchorsJudged",
    "AsyncClient",
    "AsyncScoreStream",
    "AuditInfo",
    "BranchInfo",
    "Change",
    "ChannelScales",
    "Client",
    "Conflict",
    "ConnectError",
    "Control",
    "ControlTotal",
    "Controls",
    "DeadlineError",
    "DiskInfo",
    "Drift",
    "Evaluation",
    "Evidence",
    "Forbidden",
    "Group",
    "GroupCounts",
    "HeadInfo",
    "InvalidRequest",
    "KeptSample",
    "KeptSamples",
    "Label",
    "LabelResult",
    "LabelsResult",
    "Loss",
    "NotFound",
    "Overloaded",
    "Pair",
    "Paired",
    "PolicyInfo",
    "ProtocolError",
    "R2MError",
    "Retry",
    "RunExists",
    "RunInfo",
    "Sample",
    "SampleError",
    "SampleProblem",
    "SamplesFailed",
    "Score",
    "ScoreResult",
    "ScoreStream",
    "ServerDeadline",
    "ServerError",
    "ServerInfo",
    "SkippedGroup",
    "StepConflict",
    "StepOutOfOrder",
    "StreamFailed",
    "TLSError",
    "Unauthenticated",
    "Unavailable",
    "UsageInfo",
]


def test_all_is_pinned():
    assert r2m_client.__all__ == PUBLIC
    public = {
        name
        for name, value in vars(r2m_client).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(PUBLIC)


def methods(kind):
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_clients_have_the_same_methods():
    ours, theirs = methods(Client), methods(AsyncClient)
    # A stream is made at once by both, and opened by `with` or `async with`.
    streams = ours.pop("score_stream"), theirs.pop("score_stream")
    assert streams[0].parameters == streams[1].parameters
    # asyncio has futures of its own: create_task(client.score(...)).
    background = ours.pop("score_async").parameters
    assert background == ours["score"].parameters
    assert ours == theirs
    assert inspect.signature(Client) == inspect.signature(AsyncClient)
    for name in theirs:
        assert inspect.iscoroutinefunction(getattr(AsyncClient, name))


def in_new_process(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout


HEAVY = "{name for name in ('torch','transformers','numpy','httpx','grpc','google.protobuf') "
HEAVY += "if name in sys.modules}"


def test_import_is_light():
    code = f"""
import sys, r2m_client
print(*sorted({HEAVY}))
"""
    assert in_new_process(code).strip() == ""


@pytest.mark.parametrize(
    ("url", "loaded"),
    [("http://127.0.0.1:1", "httpx"), ("grpc://127.0.0.1:1", "google.protobuf grpc")],
)
def test_a_url_loads_its_transport_alone(url, loaded):
    code = f"""
import sys, r2m_client
with r2m_client.Client({url!r}): pass
print(*sorted({HEAVY}))
"""
    assert in_new_process(code).strip() == loaded


def test_the_command_is_light_too():
    code = f"""
import sys
from r2m_client.cli import main
main(["--help"], standalone_mode=False)
print(*sorted({HEAVY}))
"""
    assert in_new_process(code).splitlines()[-1] == ""


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "localhost",
        "ftp://host:1",
        "http://",
        "http://:80",
        "http://host:port",
        "http://host:99999",
        "http://host/?a=1",
        "http://host/#a",
        "grpc://host",
        "grpc://host:1/path",
        "grpc://me:secret@host:1",
        "grpc://[::1",
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_urls_that_are_none(kind, url):
    with pytest.raises(ValueError, match="give http://HOST:PORT") as caught:
        kind(url)
    assert "me:secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "grpc", "secure", "target"),
    [
        ("http://host", False, False, "host"),
        ("https://host:8443/r2m/", False, True, "host:8443"),
        ("http://me:secret@host:80", False, False, "host:80"),
        ("grpc://127.0.0.1:50051", True, False, "127.0.0.1:50051"),
        ("grpcs://host:443/", True, True, "host:443"),
        ("grpc://[::1]:50051", True, False, "[::1]:50051"),
    ],
)
def test_urls(url, grpc, secure, target):
    address = parse_url(url)
    assert (address.grpc, address.secure, address.target) == (grpc, secure, target)
    assert "secret" not in address.shown
    Client(url).close()


def test_certificates_are_checked():
    from r2m_client._http import _network
    from r2m_client._tls import Trust

    assert _network(parse_url("https://host"), Trust())["verify"] is True
    assert _network(parse_url("http://host"), Trust())["verify"].verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}])
def test_settings_that_are_none(wrong):
    with pytest.raises(ValueError, match=r"timeout|negative"):
        Client("http://host", **wrong)


def test_wire_dtypes():
    with pytest.raises(ValueError, match="'int4' is not one of bfloat16"):
        Client("http://host", wire_dtype="int4")


def test_context_managers(http_server, script):
    import asyncio

    with Client(http_server.url) as client:
        assert client.runs()

    async def main():
        async with AsyncClient(http_server.url) as client:
            return await asyncio.gather(*(client.run("tldr") for _ in range(8)))

    assert len(asyncio.run(main())) == 8


def test_threads_share_a_client(server, script):
    from concurrent.futures import ThreadPoolExecutor

    samples = [r2m_client.Sample(str(i), "p", "r") for i in range(20)]
    with Client(server.url) as client, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda s: client.score([s], run="tldr"), samples))
        assert client.bytes_sent == sum(len(seen.payloads[0]) for seen in script.seen)
    assert [result.scores[0].id for result in results] == [s.id for s in samples]
