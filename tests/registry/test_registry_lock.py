"""One server an SQLite file; a repair alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from registry_makers import refuses

from r2m.errors import Code
from r2m_service.registry.lock import hold, holder

HOLD = """
import sys, time
from pathlib import Path
from r2m_service.registry.lock import hold
unlock = hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_one_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "new" / "r2m.db"
    unlock = hold(file)
    for repair in (False, True):
        with refuses(Code.STORAGE_FAILED, f"process {os.getpid()} works on", "r2m.db:"):
            hold(file, repair=repair)
    hold(tmp_path / "other.db")()
    assert holder(file) == str(os.getpid())
    assert holder(tmp_path / "nowhere.db") is None
    unlock()
    assert holder(file) is None
    hold(f"sqlite:///{file}")()
    assert not file.exists()


def test_a_process_that_is_killed_holds_it_no_more(tmp_path: Path) -> None:
    file = tmp_path / "r2m.db"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with refuses(Code.STORAGE_FAILED, f"process {child.pid} works on"):
            hold(file)
        child.send_signal(signal.SIGKILL)
        child.wait()
        hold(file)()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "r2m.db.lock").mkdir()
    with refuses(Code.STORAGE_FAILED, "r2m.db.lock cannot be written"):
        hold(tmp_path / "r2m.db")


@pytest.mark.skipif("R2M_TEST_DATABASE_URL" not in os.environ, reason="needs PostgreSQL")
def test_servers_share_postgresql_and_a_repair_is_alone(url: str) -> None:
    one, two = hold(url), hold(url)
    with refuses(Code.STORAGE_FAILED, "a server runs"):
        hold(url, repair=True)
    one()
    with refuses(Code.STORAGE_FAILED, "a server runs"):
        hold(url, repair=True)
    two()
    alone = hold(url, repair=True)
    with refuses(Code.STORAGE_FAILED, "is repairing"):
        hold(url)
    alone()
    hold(url)()
