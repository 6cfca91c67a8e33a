"""What fails fast at the start fails before the model is loaded, and gives back its lock."""

import re

import fsspec
import pytest

from r2m_service import bootstrap
from r2m_service.settings import Settings


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """What the start of a server with these settings is refused for; no model may be loaded."""

    def load(_settings):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(bootstrap, "_load", load)

    def start(**settings):
        with pytest.raises(bootstrap.StartError) as caught:
            bootstrap.build(Settings(model="m", state=tmp_path / "state", **settings))
        # The lock of SQLite's file is free again: another start gets as far as this one.
        with pytest.raises(bootstrap.StartError) as again:
            bootstrap.build(Settings(model="m", state=tmp_path / "state", **settings))
        first, second = (re.sub("doctor-[0-9a-f]+", "", str(one.value)) for one in (caught, again))
        assert first == second
        return str(caught.value)

    return start


def test_a_folder_of_heads_that_cannot_be_made(refusal, tmp_path):
    (tmp_path / "file").write_text("")
    assert "Not a directory (--blobs)" in refusal(blobs=str(tmp_path / "file"))


def test_a_journal_that_cannot_be_written(refusal, tmp_path):
    (tmp_path / "file").write_text("")
    assert "(--journal)" in refusal(journal=tmp_path / "file" / "journal")


def test_an_object_store_that_takes_no_files(refusal, monkeypatch):
    class NoSuchBucketError(Exception):
        pass

    def fail(*_, **__):
        raise NoSuchBucketError("secret")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", fail)
    why = refusal(blobs="memory://start/order")
    assert "could not be written: NoSuchBucketError (--blobs)" in why
    assert "secret" not in why


def test_an_object_store_that_works_keeps_nothing_of_the_trial(refusal):
    files = fsspec.filesystem("memory")
    with pytest.raises(AssertionError, match="the model was loaded"):
        refusal(blobs="memory://start/well")
    assert files.find("/start/well") == []
