"""Invariant 3: nothing acknowledged is lost, and a killed run goes on as if nothing had happened.

The server is killed at random instants, and at each write that an align makes. `make kills` asks
for more of both (R2M_TEST_KILLS=200) than `make test` does.
"""

import dataclasses
import hashlib
import itertools
import os
import random
import threading
import time

import pytest
from support.forks import nursery
from support.rollouts import WIDTH_P, groups, samples

from r2m_client import Client, R2MError, ServerError

KILLS = int(os.environ.get("R2M_TEST_KILLS", "6"))
LONG = KILLS > 50
CONTROLS = ["shuffled", "backbone", "none"]
METHOD = {"width": 16, "learning_rate": 3e-4, "seed": 3, "controls": CONTROLS}
BATCH = samples(77)
SECONDS = 30
"""What a kill, a start and the checks may take on a busy machine."""


def data(number):
    """Two groups, one of them labelled: what its controls make of it is in every answer."""
    first, second = groups(number % 40, count=2)
    ids = [one.id for one in first.samples]
    return [dataclasses.replace(first, preferred=(ids[number % 4], ids[(number + 1) % 4])), second]


class Trainer:
    """Aligns, and goes back now and then; remembers what it was told and what is in flight."""

    def __init__(self, run):
        self.run = run
        self.branch, self.step, self.head = "main", 0, 0
        self.done = []
        self.acknowledged = {}
        self.pending = None
        self.rewards = {}

    def wanted(self):
        number = len(self.done)
        if number % 7 == 6 and self.step > 1:
            return ("rollback", self.step - 1)
        return ("align", self.step + 1, number)

    def go_on(self, client):
        """One more operation, or the one whose answer did not come."""
        again = self.pending is not None
        self.pending = self.pending or self.wanted()
        what, step, *rest = self.pending
        if what == "align":
            answer = client.align(self.run, step=step, groups=data(*rest), branch=self.branch)
            self.acknowledged[self.branch, step] = (answer, rest[0])
            self.head, self.step = answer.head, step
        else:
            state = client.run(self.run)
            if not again or state.branch == self.branch:
                state = client.rollback(self.run, to_step=step, reason="again")
            self.branch, self.head, self.step = state.branch, state.head, state.step
        self.done.append(self.pending)
        self.pending = None

    def score(self, client):
        """A head's rewards are what they were in every life before."""
        answer = client.score(BATCH, run=self.run)
        assert self.rewards.setdefault(answer.head, answer.rewards) == answer.rewards
        return answer.head


def check(client, trainer, blobs, draw):
    """What was acknowledged is there, what was not is there whole or not at all.

    Returns:
        What had become of the operation in flight.
    """
    state = client.run(trainer.run)
    heads = client.heads(trainer.run)
    assert [one.head for one in heads] == list(range(len(heads)))
    pending = trainer.pending
    if pending is None or pending[0] == "align":
        assert state.branch == trainer.branch
        ahead = state.step - trainer.step
        assert ahead in ((0, 1) if pending else (0,))
        if ahead:  # live is what the step in flight made of it
            made = heads[-1]
            assert (made.parent, made.step) == (trainer.head, state.step)
            assert state.head == (made.head if made.accepted else trainer.head)
        else:
            assert state.head == trainer.head
    else:
        ahead = state.branch != trainer.branch
        assert state.step == (pending[1] if ahead else trainer.step)
    for answer, _ in trainer.acknowledged.values():
        assert heads[answer.candidate].verdict == answer.verdict
    kept = [one for one in heads if not one.pruned]
    for one in {0: heads[0], **{one.head: one for one in [*kept[-3:], draw.choice(kept)]}}.values():
        weights = client.head_weights(trainer.run, one.head)
        assert hashlib.sha256(weights).hexdigest() == one.sha256
    answered = list(trainer.acknowledged)
    for branch, step in {*answered[-2:], *draw.sample(answered, min(1, len(answered)))}:
        answer, seed = trainer.acknowledged[branch, step]
        again = client.align(trainer.run, step=step, groups=data(seed), branch=branch)
        assert again == answer
    whole_files(client, trainer.run, blobs)
    if pending is None:
        return "nothing in flight"
    return "committed" if ahead else "not committed"


def whole_files(client, run, blobs):
    """What a crash left is cleared, and nothing else is missing or too many."""
    deadline = time.monotonic() + 20
    while True:  # the retention rule is applied beside the first answers
        lying = {one.name: one.stat().st_size for one in blobs.rglob("*") if one.is_file()}
        disk = client.run(run).disk
        if sum(lying.values()) == disk.weights_bytes + disk.optimizer_bytes:
            break
        assert time.monotonic() < deadline, (lying, disk)
        time.sleep(0.05)
    assert not [name for name in lying if name.endswith(".part")]


def compare(client, trainer):
    """A run that was never killed does the same, and comes to the same heads, bit for bit."""
    other = Trainer(f"{trainer.run}-whole")
    client.create_run(other.run, policy_hidden_size=WIDTH_P, method=METHOD)
    for one in trainer.done:
        other.pending = one
        if one[0] == "rollback":
            state = client.rollback(other.run, to_step=one[1], reason="again")
            other.branch, other.head, other.step = state.branch, state.head, state.step
            other.pending = None
        else:
            other.go_on(client)
    assert other.acknowledged.keys() == trainer.acknowledged.keys()
    for key, (answer, _) in trainer.acknowledged.items():
        theirs, _ = other.acknowledged[key]
        assert dataclasses.replace(theirs, run=trainer.run) == answer
    ours, theirs = client.heads(trainer.run), client.heads(other.run)
    assert len(ours) > 1
    for a, b in zip(ours, theirs, strict=True):
        assert a.sha256 == b.sha256
        assert (a.parent, a.verdict, a.t, a.branch, a.step) == (
            b.parent, b.verdict, b.t, b.branch, b.step,
        )  # fmt: skip
    trainer.score(client)
    assert (
        client.score(BATCH, run=other.run).rewards == client.score(BATCH, run=trainer.run).rewards
    )


class Life:
    """A server that is killed, at an instant to be drawn, while somebody scores."""

    def __init__(self, server, trainer, url):
        self._server, self._trainer, self._url = server, trainer, url
        self.over = threading.Event()
        self.failures = []
        self._killer = None
        self._scorer = threading.Thread(target=self._score)

    def kill_in(self, seconds):
        self._killer = threading.Timer(seconds, self._kill)
        self._killer.start()

    def _kill(self):
        self.over.set()
        self._server.kill()

    def _score(self):
        with Client(self._url, wire_dtype="float32", retries=0) as client:
            while not self.over.is_set():
                try:
                    self._trainer.score(client)
                except (R2MError, AssertionError) as error:
                    if isinstance(error, AssertionError) or not self.over.is_set():
                        self.failures.append(error)
                    return

    def __enter__(self):
        self._scorer.start()
        return self

    def __exit__(self, *_):
        self._kill()
        if self._killer is not None:
            self._killer.join()
        self._scorer.join()
        assert not self.failures


def live_and_die(client, trainer, life, draw):
    """Some operations, and a kill within or between the next two."""
    operations, took = draw.randint(0, 3), 0.2
    for turn in itertools.count():
        if turn == operations:
            life.kill_in(draw.uniform(0, 2 * took))
        begun = time.monotonic()
        try:
            trainer.go_on(client)
        except ServerError:
            raise
        except R2MError:
            assert life.over.is_set()
            return
        took = time.monotonic() - begun


@pytest.fixture(scope="module")
def servers(reward_model):
    with nursery(reward_model) as one:
        yield one


@pytest.mark.timeout(60 + SECONDS * KILLS)
def test_killed_at_random_instants_nothing_acknowledged_is_lost(servers, tmp_path):
    draw = random.Random(KILLS)
    state, trainer = tmp_path / "state", Trainer("r")
    seen = dict.fromkeys(("starting", "committed", "not committed", "nothing in flight"), 0)
    begun = time.monotonic()
    for turn in range(KILLS):
        server = servers.start(state, "--deterministic")
        if turn and draw.random() < 0.15:
            time.sleep(draw.uniform(0, 1.0))
            server.kill()
            seen["starting"] += 1
            continue
        server.wait_ready()
        mine, others = (server.http, server.grpc) if turn % 2 else (server.grpc, server.http)
        with Client(mine, wire_dtype="float32", retries=0) as client:
            if turn == 0:
                client.create_run("r", policy_hidden_size=WIDTH_P, method=METHOD)
            found = check(client, trainer, state / "blobs", draw)
            seen[found] += turn > 0
            with Life(server, trainer, others) as life:
                live_and_die(client, trainer, life, draw)
        if LONG and turn % 20 == 0:
            print(f"{turn} kills, {len(trainer.done)} operations, {seen}", flush=True)
    server = servers.start(state, "--deterministic").wait_ready()
    with Client(server.grpc, wire_dtype="float32", retries=0) as client:
        seen[check(client, trainer, state / "blobs", draw)] += 1
        trainer.go_on(client)  # also what was in flight at the last kill
        compare(client, trainer)
    server.kill()
    said = server.log.read_text()
    assert "Traceback" not in said, said[-3000:]
    print(
        f"{KILLS} kills, {len(trainer.done)} operations; in flight at the kill: {seen}; "
        f"{said.count('that a crash had left')} starts cleared files; "
        f"{time.monotonic() - begun:.0f} s"
    )


# ---------------------------------------------------------------------- at each write

AT_A_WRITE = """
import os, signal, threading
import sqlalchemy
from sqlalchemy.engine.default import DefaultDialect
from r2m_service.registry import folder

class Writes:
    seen = 0

    def at(self, name):
        # The retention rule has a thread of its own, and its own time: an align's writes count.
        beside = threading.current_thread().name.startswith("r2m-retention")
        if beside or not os.path.exists({flag!r}):
            return
        self.seen += 1
        with open({told!r}, "a") as file:
            file.write(name + chr(10))
        if self.seen == {number}:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner, name, real):
        def call(*given, **more):
            self.at("before " + name)
            found = real(*given, **more)
            self.at("after " + name)
            return found
        setattr(owner, name, call)

writes, wrote = Writes(), set()
plain = open
writes.around(folder, "create", open)
created = folder.create
folder.open = lambda path, mode: (created if "x" in mode else plain)(path, mode)
for name in ("fsync", "replace"):
    writes.around(os, name, getattr(os, name))

@sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
def before(connection, cursor, statement, *_):
    if statement.startswith(("INSERT", "UPDATE", "DELETE")):
        wrote.add(threading.get_ident())
        writes.at("before " + " ".join(statement.split()[:3]))

commit = DefaultDialect.do_commit

def committing(self, connection):
    if threading.get_ident() not in wrote:
        return commit(self, connection)
    wrote.discard(threading.get_ident())
    writes.at("before commit")
    commit(self, connection)
    writes.at("after commit")

DefaultDialect.do_commit = committing
"""
LIKE = 4


@pytest.mark.timeout(60 + SECONDS * (60 if LONG else 15))
def test_killed_at_each_write_of_an_align(servers, tmp_path):
    """Only the commit decides: before it nothing has changed, after it everything has."""
    state, flag, told = tmp_path / "state", tmp_path / "flag", tmp_path / "told"

    def start(number):
        fault = AT_A_WRITE.format(flag=str(flag), told=str(told), number=number)
        return servers.start(
            state, "--deterministic", "--keep-every", "1", first=fault
        ).wait_ready()

    server = start(0)
    with Client(server.http, wire_dtype="float32", retries=0) as client:
        client.create_run("r", policy_hidden_size=WIDTH_P, method=METHOD)
        for step in range(1, LIKE):  # afterwards no prompt's label is new, and all write alike
            client.align("r", step=step, groups=data(step))
        flag.touch()
        client.align("r", step=LIKE, groups=data(LIKE))
        flag.unlink()
    server.kill()
    points = told.read_text().splitlines()
    decides = points.index("after commit") + 1
    chosen = list(range(1, decides + 1)) if LONG else sorted(short(points, decides))
    assert len(chosen) >= 6
    following = [*chosen, 0]
    server = start(following.pop(0))
    for step, number in enumerate(chosen, start=LIKE + 1):
        with Client(server.grpc, wire_dtype="float32", retries=0) as client:
            before = client.run("r")
            whole_files(client, "r", state / "blobs")
            flag.touch()
            with pytest.raises(R2MError):
                client.align("r", step=step, groups=data(step))
            server.wait_gone()
        flag.unlink()
        server = start(following.pop(0))
        with Client(server.http, wire_dtype="float32", retries=0) as client:
            after = client.run("r")
            assert after.step == step - (number < decides), points[number - 1]
            assert (after.head == before.head) == (number < decides)
            whole_files(client, "r", state / "blobs")
            answer = client.align("r", step=step, groups=data(step))
            assert (answer.head, answer.parent) == (before.head + 1, before.head)
    with Client(server.http, wire_dtype="float32", retries=0) as client:
        client.create_run("whole", policy_hidden_size=WIDTH_P, method=METHOD)
        for step in range(1, len(chosen) + LIKE + 1):
            client.align("whole", step=step, groups=data(step))
        ours, theirs = ([one.sha256 for one in client.heads(run)] for run in ("r", "whole"))
        assert ours == theirs
    server.kill()
    print(f"{len(chosen)} of {decides} points: {[points[n - 1] for n in chosen]}")


def short(points, decides):
    """The moments between which something changes on disk."""
    first = {}
    for number, name in enumerate(points[:decides], start=1):
        first.setdefault(name, number)
    wanted = ("before create", "before fsync", "before replace", "after replace")
    inserts = [n for name, n in first.items() if "heads" in name or "steps" in name]
    return {*(first[name] for name in wanted), *inserts, decides - 1, decides}
