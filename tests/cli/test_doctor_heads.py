"""`r2m doctor` on heads whose files were lost, and the server after `--repair`."""

import json
import os
import time

import pytest
from support.rollouts import WIDTH_P, groups, samples
from support.serving import running

from r2m_client import Client, Conflict, NotFound, StepOutOfOrder
from r2m_service.doctor import heads as heads_module
from r2m_service.registry.sql import SqlRegistry

PORTS = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
METHOD = {"width": 16, "learning_rate": 3e-4}


@pytest.fixture(scope="module")
def backbone(reward_model):
    from r2m_service.modeling.loading import load_backbone

    return load_backbone(str(reward_model))


@pytest.fixture
def opened(reward_model, backbone, tmp_path):
    """Serves this test's state; gives a client."""
    from contextlib import contextmanager

    @contextmanager
    def serve(kind="http"):
        with (
            running(reward_model, tmp_path / "state", backbone=backbone) as server,
            Client(server.urls[kind], wire_dtype="float32", retries=0) as client,
        ):
            yield client

    return serve


@pytest.fixture
def trained(opened):
    """A run `r` at step 5: live is head 5, of which 3, 4 and 5 have an optimizer state."""
    with opened() as client:
        client.create_run("r", policy_hidden_size=WIDTH_P, method=METHOD)
        for step in range(1, 6):
            assert client.align("r", step=step, groups=groups(step)).accepted
        client.set_alias("r", "best", 5)
        return client.score(samples(1), run="r", head=4).rewards


@pytest.fixture
def doctor(r2m, reward_model, tmp_path):
    """Runs the doctor; gives its finding about heads and its table, by (head, what)."""

    def run(*flags, code=0):
        state = tmp_path / "state"
        result = r2m("doctor", "--model", reward_model, "--state", state, *PORTS, "--no-model",
                     *flags, "--json")  # fmt: skip
        assert result.exit_code == code, result.stdout
        answer = json.loads(result.stdout)
        (found,) = [one for one in answer["findings"] if one["check"] == "heads"]
        return found, {(one["head"], one["what"]): one for one in answer["heads"]}

    return run


@pytest.fixture
def file_of(tmp_path):
    """The path of a head's file."""

    def path(number, kind="weights"):
        registry = SqlRegistry(tmp_path / "state" / "r2m.db")
        head = registry.head("r", number)
        registry.close()
        return tmp_path / "state" / "blobs" / getattr(head, kind).key

    return path


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {"flipped": flip, "cut": cut, "missing": lambda path: path.unlink()}


def snapshot(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_whole_heads_are_fine_and_left_as_they_are(trained, doctor, tmp_path):
    before = snapshot(tmp_path / "state")
    found, table = doctor()
    assert found["level"] == "ok"
    assert "6 heads take " in found["found"]
    assert "(r " in found["found"]
    assert table == {}
    found, _ = doctor("--deep")
    assert "read and whole" in found["found"]
    assert snapshot(tmp_path / "state") == before
    found, table = doctor("--repair")
    assert "nothing was lost" in found["found"]
    assert table == {}


def test_a_state_that_a_server_works_on_is_said_to_be_in_use(opened, r2m, reward_model, tmp_path):
    flags = ("doctor", "--model", reward_model, "--state", tmp_path / "state", *PORTS, "--no-model")

    def database():
        found = json.loads(r2m(*flags, "--json").stdout)["findings"]
        return next(one for one in found if one["check"] == "database")

    with opened():
        assert database()["level"] == "problem"
        assert f"process {os.getpid()} works on" in database()["found"]
    assert database()["level"] == "ok"


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_lost_live_head_is_mended_and_the_run_goes_on(
    trained, doctor, file_of, opened, how, kind, tmp_path
):
    path = file_of(5)
    DAMAGE[how](path)
    before = snapshot(tmp_path / "state")
    found, table = doctor(*(["--deep"] if how == "flipped" else []), code=1)
    assert found["level"] == "problem"
    assert "--repair" in found["mend"]
    says = {"flipped": "altered", "missing": "missing"}.get(how, " bytes, it had ")
    assert says in table[5, "weights"]["found"]
    assert "head 4 is live on branch b1, step 4" in table[5, "branch main"]["repair"]
    assert table[5, "alias best"]["repair"] == "removed"
    assert snapshot(tmp_path / "state") == before

    found, table = doctor("--repair")
    assert found["level"] == "ok"
    assert "repaired 1 runs that had lost 1 files" in found["found"]
    assert {place for place in table if place[0] is not None} == {
        (5, "weights"), (5, "branch main"), (5, "alias best"), (5, "alias candidate"),
        (4, "alias previous"),
    }  # fmt: skip
    assert not path.exists()
    found, table = doctor("--repair")
    assert "nothing was lost" in found["found"]
    assert table == {}

    with opened(kind) as client:
        run = client.run("r")
        assert (run.branch, run.head, run.step, run.next_step) == ("b1", 4, 4, 5)
        assert run.aliases == {"live": 4, "previous": 3, "reference": 0}
        assert client.score(samples(1), run="r").rewards == pytest.approx(trained, abs=1e-5)
        lost = client.head("r", 5)
        assert lost.pruned
        with pytest.raises(NotFound, match=r"damaged.*doctor --repair") as caught:
            client.score(samples(1), run="r", head=5)
        assert caught.value.code == "head_pruned"
        # The trainer stood at step 6 of main; it is told where to go on.
        for call, kind_of in (
            (lambda: client.align("r", step=6, groups=groups(6), branch="main"), Conflict),
            (lambda: client.align("r", step=6, groups=groups(6)), StepOutOfOrder),
        ):
            with pytest.raises(kind_of, match="go on with step 5"):
                call()
        # Answered steps stay answered, and the trail says what was done.
        assert client.align("r", step=5, groups=groups(5), branch="main").head == 5
        change = client.changes("r")[-1]
        assert change.what == "repaired"
        assert change.detail == {
            "weights": [5], "optimizers": [], "branch": "b1", "head": 4, "step": 4,
            "from_branch": "main", "from_head": 5,
            "aliases": {"best": [5, None], "candidate": [5, None], "previous": [4, 3]},
        }  # fmt: skip
        again = client.align("r", step=5, groups=groups(5))
        assert (again.accepted, again.parent, again.head, again.branch) == (True, 4, 6, "b1")


def test_a_lost_optimizer_state_of_live(trained, doctor, file_of, opened):
    cut(file_of(5, "optimizer"))
    found, _ = doctor(code=1)
    assert found["level"] == "problem"
    doctor("--repair")
    with opened() as client:
        assert client.run("r").head == 4
        assert client.score(samples(1), run="r", head="best").head == 5  # its weights are whole
        with pytest.raises(NotFound, match="optimizer state"):
            client.rollback("r", to=5)
        assert client.align("r", step=5, groups=groups(5)).accepted


def test_a_lost_head_that_nobody_needs_now_is_a_warning(trained, doctor, file_of, opened):
    file_of(2).unlink()
    found, table = doctor()
    assert found["level"] == "warning"
    assert list(table) == [(2, "weights")]
    found, _ = doctor("--repair")
    assert found["level"] == "ok"
    with opened() as client:
        run = client.run("r")
        assert (run.branch, run.head) == ("main", 5)
        assert client.align("r", step=6, groups=groups(6)).accepted
        assert [one.pruned for one in client.heads("r")] == [False] * 2 + [True] + [False] * 4


def test_a_lost_reference(trained, doctor, file_of, opened):
    file_of(0).unlink()
    found, table = doctor(code=1)
    assert table[0, "alias reference"]["repair"] == "points at head 1"
    assert found["level"] == "problem"
    doctor("--repair")
    with opened() as client:
        assert client.align("r", step=6, groups=groups(6)).drift.reference == 1


def test_a_store_that_is_not_there_is_no_reason_to_give_up_the_run(
    trained, doctor, tmp_path, opened
):
    (tmp_path / "state" / "blobs").rename(tmp_path / "elsewhere")
    before = snapshot(tmp_path / "state")
    found, _ = doctor(code=1)
    assert "nothing whole is left to go on from in r" in found["found"]
    assert snapshot(tmp_path / "state") == before
    found, table = doctor("--repair", code=1)
    assert "--blobs" in found["mend"]
    assert "nothing to fall back to" in table[5, "weights"]["repair"]
    (tmp_path / "elsewhere").rename(tmp_path / "state" / "blobs")
    assert doctor("--deep")[0]["level"] == "ok"
    with opened() as client:
        assert client.align("r", step=6, groups=groups(6)).accepted


def test_beside_a_run_that_cannot_be_mended_no_file_is_removed(trained, doctor, file_of, tmp_path):
    """Half a backup was put back: what no row needs may be the other half of another one."""
    paths = [file_of(n) for n in range(6)]
    orphan = paths[0].parent / f"{'a' * 32}.safetensors"
    orphan.write_bytes(b"x")
    for path in paths:
        path.unlink()
    doctor("--repair", code=1)
    assert orphan.exists()
    assert file_of(5, "optimizer").exists()


def test_a_file_that_cannot_be_read_is_not_given_up(trained, doctor, file_of, monkeypatch, opened):
    from r2m_service.registry.folder import Folder

    path, read = file_of(5), Folder.read

    def fail(self, key, limit):
        if path.as_posix().endswith(key):
            raise OSError(5, "Input/output error")
        return read(self, key, limit)

    monkeypatch.setattr(Folder, "read", fail)
    found, table = doctor("--repair", code=1)
    assert "cannot be read" in found["found"]
    assert table[5, "weights"]["found"] == "could not be read: Input/output error"
    assert table[5, "weights"]["repair"] == "left as it is"
    monkeypatch.undo()
    assert doctor("--deep")[0]["level"] == "ok"
    with opened() as client:
        assert client.run("r").head == 5


def test_files_that_nothing_needs(trained, doctor, file_of):
    folder = file_of(5).parent
    for name in (f"{'a' * 32}.safetensors", f".{'b' * 32}.safetensors.{'c' * 16}.part"):
        (folder / name).write_bytes(b"12345678")
    found, table = doctor()
    assert table == {}  # so young, a server may be about to commit them
    hours_ago = time.time() - 2 * 3600
    for name in (f"{'a' * 32}.safetensors", f".{'b' * 32}.safetensors.{'c' * 16}.part"):
        os.utime(folder / name, (hours_ago, hours_ago))
    found, table = doctor()
    assert found["level"] == "ok"
    assert "2 files that nothing needs go at the next start" in found["found"]
    assert list(table) == [(None, "2 files, 16 bytes")]
    found, _ = doctor("--repair")
    assert "removed 2 files that nothing needed" in found["found"]
    assert not (folder / f"{'a' * 32}.safetensors").exists()
    assert doctor()[1] == {}


def test_a_repair_beside_a_server_is_refused(trained, doctor, file_of, opened, tmp_path):
    with opened():
        file_of(2).unlink()
        found, _ = doctor("--repair", code=1)
        assert "nothing was repaired" in found["found"]
        assert f"process {os.getpid()} works on" in found["found"]
        assert found["mend"] == "stop the server first"
        # Looking is fine; what is a problem is that a second server would be refused.
        assert doctor(code=1)[0]["level"] == "warning"
    assert doctor("--repair")[0]["level"] == "ok"


def test_a_head_that_a_server_lets_go_of_meanwhile_is_not_missing(
    trained, doctor, file_of, monkeypatch, tmp_path
):
    find = heads_module.find_faults

    def meanwhile(*args, **kwargs):
        found = find(*args, **kwargs)
        registry = SqlRegistry(tmp_path / "state" / "r2m.db")
        from datetime import UTC, datetime

        from r2m_service.domain.retention import Keep

        registry.prune("r", Keep(1, 0, 0, 0), datetime.now(UTC))
        registry.close()
        return found

    file_of(2).unlink()
    monkeypatch.setattr(heads_module, "find_faults", meanwhile)
    found, table = doctor()
    assert (found["level"], table) == ("ok", {})


def test_the_table_for_people(r2m, trained, file_of, reward_model, tmp_path):
    file_of(5).unlink()
    flags = ("doctor", "--model", reward_model, "--state", tmp_path / "state", *PORTS, "--no-model")
    looked = r2m(*flags).stdout.splitlines()
    (at,) = [n for n, line in enumerate(looked) if line.startswith("RUN")]
    assert looked[at].split() == ["RUN", "HEAD", "WHAT", "FOUND", "WITH", "--repair"]
    assert looked[at + 1].split()[:4] == ["r", "5", "weights", "missing"]
    done = r2m(*flags, "--repair").stdout
    assert "FOUND" in done
    assert "DONE" in done
    assert "repaired 1 runs" in done


def test_an_archived_run_is_only_marked(trained, doctor, file_of, opened):
    with opened() as client:
        client.archive_run("r")
    file_of(5).unlink()
    assert doctor()[0]["level"] == "warning"
    doctor("--repair")
    with opened() as client:
        run = client.run("r")
        assert (run.archived, run.branch, run.head, len(run.branches)) == (True, "main", 5, 1)
        assert client.head("r", 5).pruned
        assert client.head_weights("r", 4)
