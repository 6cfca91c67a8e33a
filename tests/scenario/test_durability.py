"""Crashes, full disks, locked databases, backups: nothing acknowledged is lost, nothing is left."""

import contextlib
import datetime
import errno
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial

import pytest
from click.testing import CliRunner
from support.processes import serving
from support.rollouts import WIDTH_P, groups, samples
from support.serving import running

from r2m_client import Client, ConnectError, Label, Pair, Sample, ServerError, Unavailable
from r2m_service import bootstrap
from r2m_service.cli import doctor
from r2m_service.registry import folder as folder_module

METHOD = {"width": 16, "learning_rate": 3e-4}
LEAST = {"keep_heads": 1, "keep_every": 0, "max_staleness": 0, "keep_optimizers": 0}
SOME = {**LEAST, "keep_heads": 6, "keep_optimizers": 5}
FLAGS = [part for name, n in LEAST.items() for part in (f"--{name.replace('_', '-')}", str(n))]
PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def example(name):
    (text,) = re.findall(rf"<!-- example: {name} -->\n```\n(.*?)```", PAGE, re.DOTALL)
    return text


def files(state):
    return sorted(str(one.relative_to(state)) for one in (state / "blobs").rglob("*.*"))


@pytest.fixture
def opened(reward_model, backbone, tmp_path):
    """Starts a server on this test's state folder."""
    return lambda **changes: running(reward_model, tmp_path / "state", backbone=backbone, **changes)


def created(client, run="r"):
    client.create_run(run, policy_hidden_size=WIDTH_P, method=METHOD)


# ---------------------------------------------------------------------- crashes

DIES_BEFORE_IT_REMOVES = """
import os, signal
from r2m_service.registry.blobs import BlobStore
BlobStore.delete = lambda self, key: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_between_letting_go_and_removing(reward_model, opened, tmp_path, caplog):
    caplog.set_level("INFO", "r2m")
    state = tmp_path / "state"
    with (
        serving(reward_model, state, *FLAGS, first=DIES_BEFORE_IT_REMOVES) as server,
        Client(server.http, retries=0) as client,
    ):
        created(client)
        for step in (1, 2):
            client.align("r", step=step, groups=groups(step))
        # Head 1 is needed no more. Whether the answer comes through first is a matter of luck.
        with contextlib.suppress(ConnectError):
            client.align("r", step=3, groups=groups(3))
        assert server.process.wait(30) == -9
    assert len(files(state)) == 7
    with opened(**LEAST) as server, Client(server.urls["http"], retries=0) as client:
        assert "cleared 2 files" in caplog.text
        assert len(files(state)) == 5
        heads = client.heads("r")
        assert [one.pruned for one in heads] == [False, True, False, False]
        assert client.align("r", step=3, groups=groups(3)).head == 3  # the stored answer
        assert client.align("r", step=4, groups=groups(4)).accepted
        assert client.score(samples(1), run="r", head=0).head == 0


def test_a_half_written_file_is_cleared_at_the_start(opened, tmp_path, caplog):
    caplog.set_level("INFO", "r2m")
    with opened() as server, Client(server.urls["http"]) as client:
        created(client)
    whole = files(tmp_path / "state")
    (folder,) = (tmp_path / "state" / "blobs").iterdir()
    (folder / f".{'a' * 32}.safetensors.{'b' * 16}.part").write_bytes(b"half")
    (folder / f"{'c' * 32}.optimizer.safetensors").write_bytes(b"no row")
    with opened():
        assert files(tmp_path / "state") == whole
    assert "cleared 2 files (10 bytes)" in caplog.text


def test_a_second_server_on_a_state_folder_is_refused(opened, tmp_path):
    with opened() as server, Client(server.urls["http"]) as client:
        created(client)
        with pytest.raises(bootstrap.StartError) as caught, opened():
            pass
        assert f"process {os.getpid()} works on" in str(caught.value)
        assert f"--state {tmp_path / 'state'}" in str(caught.value)
        assert client.align("r", step=1, groups=groups(1)).accepted
    with opened() as server, Client(server.urls["http"]) as client:
        assert client.run("r").step == 1


# ---------------------------------------------------------------------- full disks, locks


def refused(client, step):
    """An align that the storage refuses: what may be retried, and has changed nothing."""
    before = client.run("r")
    with pytest.raises(Unavailable) as caught:
        client.align("r", step=step, groups=groups(step))
    assert (caught.value.code, caught.value.retryable) == ("storage_failed", True)
    after = client.run("r")
    assert (after.head, after.step, after.aliases) == (before.head, before.step, before.aliases)
    assert client.score(samples(1), run="r").head == before.head
    return caught.value.message


@pytest.mark.parametrize("kind", ["http", "grpc"])
@pytest.mark.parametrize("which", [1, 2])
def test_a_disk_that_fills_leaves_nothing_behind(opened, tmp_path, monkeypatch, kind, which):
    """The first file of a head does not fit, or only its second."""
    state = tmp_path / "state"
    with opened() as server, Client(server.urls[kind], retries=0) as client:
        created(client)
        assert client.align("r", step=1, groups=groups(1)).accepted
        before = files(state)
        written, fsync = [], os.fsync

        def full(descriptor):
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            if name.endswith(".part"):
                written.append(name)
                if len(written) == which:
                    raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(folder_module.os, "fsync", full)
        assert "the disk is full" in refused(client, 2)
        monkeypatch.undo()
        assert len(written) == which
        assert files(state) == before
        assert client.align("r", step=2, groups=groups(2)).head == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False
    )
    if not done or done.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_really_full(reward_model, backbone, small_disk):
    state = small_disk / "state"
    with (
        running(reward_model, state, backbone=backbone) as server,
        Client(server.urls["http"], retries=0) as client,
    ):
        created(client)
        assert client.align("r", step=1, groups=groups(1)).accepted
        before = files(state)
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        assert "the disk is full" in refused(client, 2)
        assert files(state) == before
        filler.unlink()
        assert client.align("r", step=2, groups=groups(2)).head == 2


def test_a_database_that_another_process_locks(opened, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "r2m")
    state = tmp_path / "state"
    monkeypatch.setattr(bootstrap, "SqlRegistry", partial(bootstrap.SqlRegistry, lock_timeout=0.1))
    with opened() as server, Client(server.urls["grpc"], retries=0) as client:
        created(client)
        assert client.align("r", step=1, groups=groups(1)).accepted
        server.parts.retention.settle()
        before = files(state)
        with contextlib.closing(sqlite3.connect(state / "r2m.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert "locked by another process" in refused(client, 2)
            with pytest.raises(ServerError, match="storage_failed"):
                client.set_alias("r", "a", 0)
            other.execute("ROLLBACK")
        assert client.align("r", step=2, groups=groups(2)).head == 2
        # Nobody could know whether the first try was committed: its files stay until the start.
        assert len(files(state)) == len(before) + 4
    with opened():
        assert len(files(state)) == len(before) + 2
    assert "cleared 2 files" in caplog.text


# ---------------------------------------------------------------------- a clock that jumps


def test_a_clock_that_jumps_decides_nothing(opened, monkeypatch, tmp_path):
    """Years ahead, and back before the run was made: steps, heads, labels, files go by number."""
    real = datetime.datetime
    shift = [datetime.timedelta(0)]

    class Jumping(real):
        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + shift[0]

    for name, module in list(sys.modules.items()):
        if name.startswith("r2m_service") and getattr(module, "datetime", None) is real:
            monkeypatch.setattr(module, "datetime", Jumping)
    method = {**METHOD, "audit_rate": 1.0, "judge_share": 0.0}
    jumps = itertools.cycle([0, 4000, -4000, 365, -10])
    with opened(**SOME) as server, Client(server.urls["http"], retries=0) as client:
        for run in ("jumps", "calm"):
            client.create_run(run, policy_hidden_size=WIDTH_P, method=method)
        heads = {}
        for run in ("jumps", "calm"):
            for step in range(1, 13):
                shift[0] = datetime.timedelta(days=next(jumps) if run == "jumps" else 0)
                sent = [replace(one, group=f"s{step}") for one in samples(step, group=f"s{step}")]
                scored = client.score(sent, run=run).scores
                labels = [Label(id=one.id, grade=float(n)) for n, one in enumerate(scored)]
                client.add_labels(run, labels)
                assert client.align(run, step=step, groups=groups(step)).groups.replayed == step
                server.parts.retention.settle()
            heads[run] = client.heads(run)
        ours, theirs = (
            [(one.head, one.step, one.verdict, one.sha256, one.pruned) for one in heads[run]]
            for run in ("jumps", "calm")
        )
        assert ours == theirs
        answer = client.align("jumps", step=12, groups=groups(12))
    # A start in the past, or in the future, clears nothing that a row needs.
    for days in (-9000, 9000):
        shift[0] = datetime.timedelta(days=days)
        before = files(tmp_path / "state")
        with opened(**SOME) as server, Client(server.urls["grpc"], retries=0) as client:
            server.parts.retention.settle()
            assert files(tmp_path / "state") == before
            assert client.align("jumps", step=12, groups=groups(12)) == answer
            assert {one.run for one in client.runs()} == {"jumps", "calm"}


# ---------------------------------------------------------------------- files beside the heads


def damaged(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[:-1])
    elif how == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_lost_anchors_are_told_and_come_back_with_the_same_set(opened, reward_model, tmp_path, how):
    pairs = [Pair(f"p{n}", Sample("a", "Hi", "there"), Sample("b", "Hi", f"{n}")) for n in range(3)]

    def examined(*flags):
        state = ["--state", str(tmp_path / "state"), "--model", str(reward_model), "--no-model"]
        ports = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
        found = json.loads(CliRunner().invoke(doctor, [*state, *ports, *flags, "--json"]).stdout)
        (heads,) = [one for one in found["findings"] if one["check"] == "heads"]
        return heads["level"], heads["found"], [one["what"] for one in found["heads"]]

    with opened() as server, Client(server.urls["http"], retries=0) as client:
        created(client)
        put = client.put_anchors("r", pairs)
    (file,) = (tmp_path / "state" / "blobs").rglob("anchors/*.json")
    damaged(file, how)
    level, found, lines = examined("--deep", "--repair")
    assert (level, lines) == ("problem", ["anchors"])
    assert "anchors of r are lost" in found
    with opened() as server, Client(server.urls["grpc"], retries=0) as client:
        with pytest.raises(Unavailable, match="the anchors of run 'r' are lost") as caught:
            client.align("r", step=1, groups=groups(1))
        assert caught.value.code == "head_damaged"
        assert client.put_anchors("r", pairs) == put  # not a new set: its looks stay counted
        assert client.align("r", step=1, groups=groups(1)).accepted
    assert examined("--deep")[0] == "ok"
    assert len(list((tmp_path / "state" / "blobs").rglob("anchors/*"))) == 1


# ---------------------------------------------------------------------- backup


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the sqlite3 command is not installed")
def test_the_documented_backup_of_a_running_server_is_whole(
    opened, reward_model, tmp_path, monkeypatch
):
    asked, done = threading.Semaphore(0), threading.Event()

    def train(url):
        with Client(url, retries=0) as client:
            for step in itertools.count(1):
                asked.acquire()
                if done.is_set():
                    return
                client.align("r", step=step, groups=groups(step % 5, count=1, size=3))

    def run(line):
        subprocess.run(line, shell=True, cwd=tmp_path, check=False, timeout=60)

    def while_training(client, steps, line="true"):
        goal = client.run("r").step + steps
        asked.release(steps)
        run(line)
        while client.run("r").step < goal:
            assert trainer.is_alive()

    with opened(**SOME) as server, Client(server.urls["http"]) as client:
        created(client)
        trainer = threading.Thread(target=train, args=(server.urls["grpc"],))
        trainer.start()
        try:
            while_training(client, 8)
            for line in example("backup").replace("r2m-state", "state").splitlines():
                while_training(client, 2, line)
        finally:
            done.set()
            asked.release()
            trainer.join()
        last = client.run("r").step
        lineage = client.heads("r")
        rewards = client.score(samples(1), run="r", head=0).rewards
    shutil.rmtree(tmp_path / "state")
    restore, check = example("restore").replace("r2m-state", "state").splitlines()
    run(restore)
    monkeypatch.chdir(tmp_path)
    flags = check.replace("MODEL", str(reward_model)).split()[2:]
    found = json.loads(CliRunner().invoke(doctor, [*flags, "--json"]).stdout)
    (heads,) = [one for one in found["findings"] if one["check"] == "heads"]
    assert heads["level"] == "ok", found["heads"]
    with opened(**SOME) as server, Client(server.urls["http"]) as client:
        state = client.run("r")
        assert 0 < state.step < last
        assert sum(one.pruned for one in lineage) > 0
        kept = client.heads("r")
        assert len(kept) > 6
        for mine, theirs in zip(kept, lineage, strict=False):
            assert (mine.head, mine.sha256, mine.verdict) == (
                theirs.head, theirs.sha256, theirs.verdict,
            )  # fmt: skip
            if not mine.pruned:
                data = client.head_weights("r", mine.head)
                assert hashlib.sha256(data).hexdigest() == mine.sha256
        assert client.score(samples(1), run="r", head=0).rewards == pytest.approx(rewards, abs=1e-5)
        answer = client.align("r", step=state.next_step, groups=groups(9))
        assert answer.parent == state.head
