"""The lab's processes: results in order, and none left behind by Ctrl-C."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

import lab
from lab.processes import each, processes

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from lab.processes import each, processes

def work(folder, n):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    with processes(2) as pool:
        each(pool, "sleeping", work, {str(n): (sys.argv[1], n) for n in range(4)})
"""


def test_results_are_in_the_order_of_the_calls():
    said = io.StringIO()
    with processes(2) as pool:
        calls = {str(n): (-n,) for n in range(5)}
        assert each(pool, "counting", abs, calls, Console(file=said)) == [0, 1, 2, 3, 4]
        assert each(pool, "nothing", abs, {}, Console(file=said)) == []
    assert "counting 5/5" in said.getvalue()


def test_ctrl_c_ends_all_of_them_at_once(tmp_path):
    script, begun = tmp_path / "sleeps.py", tmp_path / "begun"
    script.write_text(SCRIPT)
    begun.mkdir()
    given = subprocess.Popen(
        [sys.executable, str(script), str(begun)],
        env={**os.environ, "PYTHONPATH": str(Path(lab.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 90
        while len(names := [path.name for path in begun.iterdir()]) < 2:
            assert time.monotonic() < until, "no process began"
            time.sleep(0.05)
        os.killpg(given.pid, signal.SIGINT)  # as a terminal does
        _, said = given.communicate(timeout=30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(given.pid, signal.SIGKILL)
        given.communicate()
    assert "KeyboardInterrupt" in said
    assert len(list(begun.iterdir())) == 2, "another call was begun"
    for name in names:
        with pytest.raises(ProcessLookupError):
            os.kill(int(name), 0)
