"""What a crash left is cleared; what anybody may need is not touched."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest
from registry_makers import make_commit, make_head, make_run, refuses

from r2m.errors import Code
from r2m_service.domain.labels import KeptSample
from r2m_service.domain.retention import Keep
from r2m_service.domain.runs import Change
from r2m_service.registry.blobs import BlobStore
from r2m_service.registry.sweep import GRACE, sweep

if TYPE_CHECKING:
    from registry_makers import SqlRegistry

KEY, OTHER = "a" * 32, "b" * 32
OLD = datetime.now(UTC) - GRACE - timedelta(minutes=1)


def file(n: int, kind: str = "") -> str:
    return f"{KEY}/{n:032x}{kind}.safetensors"


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "folder":
        return BlobStore(str(tmp_path / "blobs"))
    return BlobStore(f"memory://{secrets.token_hex(8)}/prefix")


@pytest.fixture
def run(empty: SqlRegistry, store: BlobStore) -> SqlRegistry:
    """A run whose heads 0 to 3 have their files."""
    first = replace(make_head(), weights=store.put(file(0), b"w0"), optimizer=None)
    empty.create_run(make_run(key=KEY), first)
    for n in (1, 2, 3):
        commit = make_commit(n, n - 1, n)
        assert commit.candidate is not None
        candidate = replace(
            commit.candidate,
            weights=store.put(file(n), b"w"),
            optimizer=store.put(file(n, ".optimizer"), b"oo"),
        )
        empty.commit_step(replace(commit, candidate=candidate))
    return empty


def age(store: BlobStore, name: str, moment: datetime = OLD) -> None:
    files = store._files
    if hasattr(files, "_filesystem"):
        files._filesystem.store[f"{files._root}/{name}"].modified = moment
    else:
        os.utime(files._root / name, (moment.timestamp(),) * 2)


def test_a_whole_store_is_left_alone(run: SqlRegistry, store: BlobStore) -> None:
    before = store.sizes()
    assert len(before) == 7
    assert sweep(run, store, alone=True) == {}
    assert store.sizes() == before


def test_files_that_no_row_needs_are_removed(run: SqlRegistry, store: BlobStore) -> None:
    before = store.sizes()
    orphans = {file(9): 3, file(9, ".optimizer"): 4, f"{KEY}/.{'c' * 32}.safetensors."
               f"{'d' * 16}.part": 5}  # fmt: skip
    for name, size in orphans.items():
        store._files.write(name, b"x" * size)
    # What was let go and not yet removed.
    run.prune("tldr", Keep(heads=1, every=0, staleness=0, optimizers=0), datetime.now(UTC))
    gone = sweep(run, store, alone=True)
    assert gone == {**orphans, file(1): 1, file(1, ".optimizer"): 2}
    assert store.sizes() == {name: n for name, n in before.items() if name not in gone}
    assert sweep(run, store, alone=True) == {}


def test_files_beside_the_heads_are_removed_unless_a_row_needs_them(
    run: SqlRegistry, store: BlobStore
) -> None:
    """Of a mark, or an anchor set, that a crash cut off before its row."""
    put = {
        name: store.put(f"{KEY}/{name}", b"kept") for name in (f"samples/{1:032x}.bin",
                                                            f"anchors/{1:032x}.json")
    }  # fmt: skip
    now = datetime.now(UTC)
    sample = KeptSample(
        "s", "g", "train", "p", "c", 0, "main", 0.0, 0.0, {}, now, {"dtype": "float32"},
        put[f"samples/{1:032x}.bin"],
    )  # fmt: skip
    assert run.keep_samples("tldr", [sample], most=9, most_bytes=99) == ({"s"}, [])
    run.put_anchors(
        "tldr", pairs=1, file=put[f"anchors/{1:032x}.json"], at=now,
        change=Change(now, "anchors", {}),
    )  # fmt: skip
    before = store.sizes()
    orphans = {
        f"{KEY}/samples/{2:032x}.bin": 3,
        f"{KEY}/samples/.{2:032x}.bin.{'d' * 16}.part": 4,
        f"{KEY}/anchors/{2:032x}.json": 5,
    }
    for name, size in orphans.items():
        store._files.write(name, b"x" * size)
    assert sweep(run, store, alone=True) == orphans
    assert store.sizes() == before


def test_what_is_young_may_be_another_replicas(run: SqlRegistry, store: BlobStore) -> None:
    store.put(file(8), b"young")
    store.put(file(9), b"old")
    age(store, file(9))
    assert sweep(run, store, alone=False) == {file(9): 3}
    assert file(8) in store.sizes()
    assert sweep(run, store, alone=True) == {file(8): 5}


def test_what_is_not_ours_stays(run: SqlRegistry, store: BlobStore) -> None:
    theirs = ["notes.txt", "x/notes.txt", f"{KEY}/notes.txt", f"{KEY}/{'c' * 32}.pt",
              f"deep/{file(9)}", f"{'A' * 32}/{'c' * 32}.safetensors",
              f"{KEY}/{'c' * 31}.safetensors"]  # fmt: skip
    for name in theirs:
        store.put(name, b"mine")
        age(store, name)
    assert sweep(run, store, alone=True) == {}
    assert set(theirs) <= set(store.sizes())


def test_another_databases_runs_stay_unless_the_store_is_ours(
    run: SqlRegistry, store: BlobStore
) -> None:
    name = f"{OTHER}/{'c' * 32}.safetensors"
    store.put(name, b"theirs")
    age(store, name)
    assert sweep(run, store, alone=False) == {}
    assert sweep(run, store, alone=True) == {name: 6}


def test_a_doctors_trial_goes_when_it_is_old(run: SqlRegistry, store: BlobStore) -> None:
    name = f"doctor-{'0' * 16}"
    store.put(name, b"trial")
    assert sweep(run, store, alone=True) == {}
    age(store, name)
    assert sweep(run, store, alone=False) == {name: 5}


def test_a_store_that_does_not_tell_ages_is_left_alone(
    run: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore("memory://ageless")
    store.put(file(9), b"x")

    def unknown(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "modified", unknown)
    assert sweep(run, store, alone=False) == {}
    store.delete(file(9))


def test_an_empty_store_has_no_files() -> None:
    assert BlobStore(f"memory://{secrets.token_hex(8)}").sizes() == {}


def test_a_store_that_fails_is_said_to(
    run: SqlRegistry, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store._files, "sizes", fail)
    with refuses(Code.STORAGE_FAILED, "Permission denied"):
        sweep(run, store, alone=True)
