"""The database itself: durable, locked, full, damaged, wrongly named."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from registry_makers import SqlRegistry, make_commit, make_head, make_run, refuses
from sqlalchemy import event

from r2m.errors import Code, Problem
from r2m_service.domain.runs import AnsweredStep, Branch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def other(sqlite: SqlRegistry, sqlite_file: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection to the same file."""
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as connection:
        yield connection


def test_connections_are_durable_and_checked(sqlite: SqlRegistry) -> None:
    with sqlite._engine.connect() as connection:
        answers = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert answers == ["wal", 2, 1, 50]


def test_a_locked_database_can_be_read_and_says_so_to_writers(
    sqlite: SqlRegistry, other: sqlite3.Connection
) -> None:
    other.execute("BEGIN IMMEDIATE")
    writes: list[Callable[[], object]] = [
        lambda: sqlite.create_run(make_run("b"), make_head()),
        lambda: sqlite.archive_run("tldr"),
        lambda: sqlite.set_alias("tldr", "mine", 0, None),
        lambda: sqlite.commit_step(make_commit(1, 0, 1)),
    ]
    for write in writes:
        with refuses(Code.STORAGE_FAILED, "locked by another process"):
            write()
    assert sqlite.run_state("tldr") is not None
    assert sqlite.next_head_number("tldr") == 1
    other.execute("ROLLBACK")
    for write in (writes[0], writes[2], writes[3]):
        write()
    assert len(sqlite.run_states()) == 2


def test_a_reader_does_not_hold_up_a_writer(sqlite: SqlRegistry, other: sqlite3.Connection) -> None:
    other.execute("BEGIN")
    assert other.execute("SELECT count(*) FROM steps").fetchone() == (0,)
    sqlite.commit_step(make_commit(1, 0, 1))
    assert other.execute("SELECT count(*) FROM steps").fetchone() == (0,)
    other.execute("COMMIT")
    assert other.execute("SELECT count(*) FROM steps").fetchone() == (1,)


def test_a_full_disk_loses_nothing(sqlite: SqlRegistry, sqlite_file: Path) -> None:
    def full(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite: no more than it has now

    event.listen(sqlite._engine, "checkout", full)
    commit = make_commit(1, 0, 1, answer="x" * 100_000)
    with refuses(Code.STORAGE_FAILED, "the disk is full"):
        sqlite.commit_step(commit)
    state = sqlite.run_state("tldr")
    assert state is not None
    assert (state.branch(None).step, len(sqlite.heads("tldr"))) == (0, 1)
    event.remove(sqlite._engine, "checkout", full)
    sqlite.close()  # the limit is the connection's
    sqlite.commit_step(commit)
    assert sqlite.answered_step("tldr", "main", 1) == AnsweredStep("hash-1", commit.answer)


def test_every_method_says_storage_failed(sqlite: SqlRegistry, other: sqlite3.Connection) -> None:
    for table in ("steps", "aliases", "branches", "heads", "runs"):
        other.execute(f"DROP TABLE {table}")
    commit = make_commit(1, 0, 1)
    calls: list[Callable[[], object]] = [
        lambda: sqlite.create_run(make_run("secret"), make_head()),
        lambda: sqlite.run_state("secret"),
        sqlite.run_states,
        lambda: sqlite.archive_run("secret"),
        lambda: sqlite.head("secret", 0),
        lambda: sqlite.heads("secret"),
        lambda: sqlite.next_head_number("secret"),
        lambda: sqlite.set_alias("secret", "mine", 0, None),
        lambda: sqlite.answered_step("secret", "main", 1),
        lambda: sqlite.head_after_step("secret", "main", 1),
        lambda: sqlite.commit_step(commit),
        lambda: sqlite.open_branch("secret", Branch(name="b", live=0, step=0)),
    ]
    for call in calls:
        with pytest.raises(Problem) as raised:
            call()
        problem = raised.value
        assert problem.code is Code.STORAGE_FAILED
        assert problem.message == "the registry's database failed (SQLITE_ERROR)"
        # Tracebacks are logged: the cause names the statement, but no values.
        assert "secret" not in str(problem.__cause__)


def test_damaged_settings_are_refused_not_guessed(
    sqlite: SqlRegistry, other: sqlite3.Connection
) -> None:
    other.execute("UPDATE runs SET method = replace(method, '\"seed\"', '\"sed\"')")
    with refuses(Code.STORAGE_FAILED, "MethodSettings cannot be read"):
        sqlite.run_state("tldr")
    other.execute("UPDATE heads SET metrics = '{'")
    with refuses(Code.STORAGE_FAILED, "metrics of head 0 cannot be read"):
        sqlite.head("tldr", 0)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"not a database " * 1000)
    with refuses(Code.STORAGE_FAILED, "is damaged, or no database"):
        SqlRegistry(tmp_path / "registry.db")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with refuses(Code.STORAGE_FAILED, "registry's folder", "cannot be made"):
        SqlRegistry(tmp_path / "state" / "sub" / "registry.db")


def test_a_folder_in_the_files_place(tmp_path: Path) -> None:
    with refuses(Code.STORAGE_FAILED, "cannot be opened"):
        SqlRegistry(tmp_path)


def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    file = tmp_path / "st?te %41 #1" / "r&b;.db"
    registry = SqlRegistry(file)
    registry.close()
    assert file.is_file()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://", "in memory would be lost"),
        ("sqlite:///:memory:", "in memory would be lost"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory would be lost"),
        ("mysql://localhost/r2m", "is sqlite or postgresql, not mysql"),
        ("nothing of:the/kind secret@", "is not one"),
    ],
)
def test_a_url_that_is_none_of_ours(url: str, says: str) -> None:
    with refuses(Code.STORAGE_FAILED, says):
        SqlRegistry(url)


def test_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with refuses(Code.STORAGE_FAILED, "needs the package psycopg"):
        SqlRegistry("postgresql://user:secret@localhost/r2m")


COMMIT_FOR_EVER = """
import sys
from pathlib import Path
from registry_makers import SqlRegistry
from registry_makers import make_commit
registry = SqlRegistry(Path(sys.argv[1]))
step = 0
while True:
    step += 1
    registry.commit_step(make_commit(step, step - 1, step))
    print(step, flush=True)
"""


def test_nothing_acknowledged_is_lost_when_the_process_is_killed(
    sqlite: SqlRegistry, sqlite_file: Path
) -> None:
    sqlite.close()
    with subprocess.Popen(
        [sys.executable, "-c", COMMIT_FOR_EVER, str(sqlite_file)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent,
        text=True,
    ) as child:
        assert child.stdout is not None
        acknowledged = 0
        while acknowledged < 20:
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        for line in child.stdout:
            acknowledged = int(line) if line.endswith("\n") else acknowledged
    state = sqlite.run_state("tldr")
    assert state is not None
    step = state.branch(None).step
    assert step in {acknowledged, acknowledged + 1}  # one may be committed and not yet said
    assert state.aliases["live"] == state.branch(None).live == step
    assert [head.number for head in sqlite.heads("tldr")] == list(range(step + 1))
    for n in range(1, step + 1):
        assert sqlite.answered_step("tldr", "main", n) == AnsweredStep(
            f"hash-{n}", f'{{"step": {n}}}'
        )
    sqlite.commit_step(make_commit(step + 1, step, step + 1))
