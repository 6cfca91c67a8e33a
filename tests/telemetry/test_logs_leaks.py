"""Ways by which a text or a secret could come into the log, other than through a line of ours."""

import json
import subprocess
import sys

import pytest

from r2m_service.application.about import about_call, tell

CANARY = "canary-4711"

SCRIPT = """
import asyncio, gc, logging, sys, threading, warnings
from r2m_service.logs import configure, take_over

canary = "-".join(["canary", "4711"])  # not in this source: frames would show it
foreign = logging.getLogger("foreign")
foreign.addHandler(logging.StreamHandler(sys.stderr))
foreign.propagate = False
configure(sys.argv[1], "debug", show_content=sys.argv[2] == "content")
take_over()

def raising(*_):
    raise ValueError(canary)

async def nobody_asks():
    task = asyncio.ensure_future(asyncio.to_thread(raising))
    await asyncio.sleep(0.05)
    del task
    gc.collect()
    told = asyncio.get_running_loop().create_future()
    told.add_done_callback(raising)
    told.set_result(canary)
    await asyncio.sleep(0.01)

class Leaving:
    def __del__(self):
        raise ValueError(canary)

asyncio.run(nobody_asks())
thread = threading.Thread(target=raising, name="worker")
thread.start()
thread.join()
Leaving()
gc.collect()
logging.getLogger("r2m.test").info("%d samples", canary)
foreign.warning("two\\nlines")
for name in ("botocore.auth", "urllib3", "sqlalchemy.engine", "httpx"):
    logging.getLogger(name).debug("Authorization: %s", canary)
warnings.warn("careful", UserWarning)
logging.getLogger("r2m_service.test").debug("ours")
logging.getLogger("r2m.long").info("x" * 100_000)
raising()
"""


def said(form, content="quiet"):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, form, content], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


@pytest.fixture(scope="module")
def lines():
    return [json.loads(line) for line in said("json").splitlines()]


def test_nothing_that_an_error_says_gets_out_by_a_side_door():
    for form in ("json", "text"):
        assert CANARY not in said(form)
    assert CANARY in said("json", "content")


def test_all_that_goes_wrong_is_a_line_all_the_same(lines):
    failed = [(one["logger"], one["message"]) for one in lines if "error" in one]
    told = [
        ("asyncio", "Task exception was never retrieved"),
        ("asyncio", "Exception in callback"),
        ("r2m", "the thread worker ended by a bug"),
        ("r2m", "an error that nobody could be told of"),
        ("r2m.test", "a line of <string>:35 was lost"),
        ("r2m", "the server ends by a bug"),
    ]
    assert sorted(failed) == sorted(told)
    assert all("<string>" in one["stack"] for one in lines if one["logger"] in ("r2m", "asyncio"))


def test_other_libraries_are_heard_from_warnings_on_and_in_our_form(lines):
    assert [one["message"] for one in lines if one["logger"] == "foreign"] == ["two\nlines"]
    (warned,) = [one for one in lines if one["logger"] == "py.warnings"]
    assert "careful" in warned["message"]
    assert [one for one in lines if one["message"].startswith("Authorization")] == []
    assert [one["message"] for one in lines if one["logger"] == "r2m_service.test"] == ["ours"]


def test_a_line_has_an_end(lines):
    (long,) = [one for one in lines if one["logger"] == "r2m.long"]
    assert 1000 < len(long["message"]) < 3000


def test_a_fact_has_an_end_before_anybody_holds_it():
    """Names are told before they are checked: a gRPC message's may have megabytes."""
    with about_call() as facts:
        tell(run="x" * 1_000_000, step=7)
    assert len(facts["run"]) <= 256
    assert facts["step"] == 7


def test_a_server_that_cannot_start_says_so_in_the_logs_form(tmp_path):
    anywhere = ["--state", tmp_path / "s", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    command = [sys.executable, "-m", "r2m_client.cli", "serve", "--model", tmp_path / "none"]
    done = subprocess.run(
        [*command, *anywhere, "--log-format", "json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert told[-1]["level"] == "error"
    assert "there is no folder" in told[-1]["message"]
