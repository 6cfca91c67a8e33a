"""The file of keys, `r2m keys`, and which servers may listen."""

import json
import os
import re
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from support.certificates import Authority

from r2m_service.access.errors import AccessError
from r2m_service.access.keyfile import GivenKeys, KeyFile, open_keys
from r2m_service.access.opening import is_loopback, open_access
from r2m_service.domain.access import Scope, Standing, digest
from r2m_service.settings import Settings

KEY = re.compile(r"r2m_([0-9a-f]{8})_[0-9a-f]{64}")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.json"


def test_a_key_is_made_listed_and_revoked(r2m, file):
    made = r2m("keys", "create", "--keys", file, "--name", "trainer", "--scope", "align",
               "--run", "tldr-7", "--run", "b", "--expires", "30d")  # fmt: skip
    assert made.exit_code == 0
    # Alone on standard output, so that a shell can take it.
    text = made.stdout.strip()
    identity = KEY.fullmatch(text)[1]
    assert f"key {identity} (align) is in {file}" in made.stderr
    r2m("keys", "create", "--keys", file, "--name", "boss", "--scope", "admin")
    (row, other) = json.loads(r2m("keys", "list", "--keys", file, "--json").stdout)
    until = datetime.fromisoformat(row.pop("expires")) - datetime.fromisoformat(row.pop("created"))
    assert until == timedelta(days=30)
    assert row == {
        "id": identity, "name": "trainer", "scope": "align", "runs": ["b", "tldr-7"],
        "standing": "valid", "revoked": None,
    }  # fmt: skip
    assert (other["runs"], other["expires"]) == (None, None)
    revoked = r2m("keys", "revoke", "--keys", file, identity)
    assert revoked.stdout == f"key {identity} (trainer) is revoked\n"
    table = r2m("keys", "list", "--keys", file).stdout.splitlines()
    assert table[0].split() == ["ID", "NAME", "SCOPE", "RUNS", "STANDING", "CREATED", "EXPIRES"]
    assert table[1].split()[:5] == [identity, "trainer", "align", "b,tldr-7", "revoked"]
    assert table[2].split()[3:5] == ["all", "valid"]
    # The first time counts, and nothing but a hash is kept.
    before = file.read_bytes()
    r2m("keys", "revoke", "--keys", file, identity)
    assert file.read_bytes() == before
    assert text.split("_")[2] not in before.decode()
    assert digest(text) in before.decode()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("list",), "which file? Give --keys or R2M_KEYS"),
        (("list", "--keys", "none.json"), "there is no file of keys none.json"),
        (("revoke", "--keys", "none.json", "x"), "there is no file of keys none.json"),
        (("revoke", "--keys", "KEYS", "ffffffff"), "has no key of the id 'ffffffff'"),
        (("create", "--keys", "KEYS", "--scope", "align"), "Missing option '--name'"),
        (("create", "--keys", "KEYS", "--name", "n", "--scope", "root"), "'root' is not one of"),
        (("create", "--keys", "KEYS", "--name", "n", "--scope", "score", "--expires", "soon"),
         "--expires takes 30d"),
        (("create", "--keys", "KEYS", "--name", "n", "--scope", "score", "--expires", "2020-01-01"),
         "is in the past"),
        (("create", "--keys", "KEYS", "--name", "n", "--scope", "score", "--expires", "0d"),
         "is in the past"),
        (("create", "--keys", "no/folder/k", "--name", "n", "--scope", "score"), "No such file"),
    ],
)  # fmt: skip
def test_mistakes_are_named_and_change_nothing(r2m, file, tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    KeyFile(file).create("boss", Scope.ADMIN)
    before = file.read_bytes()
    result = r2m("keys", *(str(file) if arg == "KEYS" else arg for arg in args))
    assert result.exit_code != 0
    assert says in result.output
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == [file.name]


def test_the_file_is_named_as_for_serve(r2m, file, tmp_path, monkeypatch):
    KeyFile(file).create("boss", Scope.ADMIN)
    config = tmp_path / "r2m.toml"
    config.write_text(f"keys = {json.dumps(str(file))}\n")
    assert "boss" in r2m("keys", "list", "--config", config).stdout
    monkeypatch.setenv("R2M_KEYS", str(file))
    assert "boss" in r2m("keys", "list").stdout
    monkeypatch.setenv("R2M_KEYS", file.read_text())
    assert "change the file that it came from" in r2m("keys", "list").output


def test_the_file_is_for_its_owner_alone_whatever_the_umask(file):
    before = os.umask(0)
    try:
        keys = KeyFile(file)
        key, _ = keys.create("n", Scope.SCORE)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.chmod(0o666)
        keys.revoke(key.id)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_what_others_change_is_seen_at_the_next_call(file):
    ours, theirs = KeyFile(file), KeyFile(file)
    key, text = theirs.create("n", Scope.SCORE)
    assert ours.find(key.id).matches(text)
    assert not ours.find(key.id).matches(text[:-1])
    theirs.revoke(key.id)
    assert ours.find(key.id).standing(datetime.now(UTC)) is Standing.REVOKED
    second, _ = theirs.create("m", Scope.SCORE)
    assert ours.find(second.id).name == "m"
    assert ours.find("ffffffff") is None


def test_a_file_that_breaks_under_a_server_leaves_the_keys_as_they_were(file, caplog):
    keys = KeyFile(file)
    key, _ = keys.create("n", Scope.SCORE)
    whole = file.read_bytes()
    assert keys.find(key.id) is not None
    for broken in (b"{", b'{"version": 2, "keys": []}', None):
        file.unlink()
        if broken is not None:
            file.write_bytes(broken)
        caplog.clear()
        assert keys.find(key.id) is not None
        assert keys.find(key.id) is not None
        assert len(caplog.records) == 1  # said once, not at every call
        assert "as they were before go on to hold" in caplog.text
        with pytest.raises(AccessError):
            keys.create("m", Scope.SCORE) if broken else keys.revoke(key.id)
    file.write_bytes(whole.replace(b'"n"', b'"back"'))
    assert keys.find(key.id).name == "back"


def test_many_hands_lose_nothing(file):
    def make(name):
        KeyFile(file).create(name, Scope.SCORE)

    hands = [threading.Thread(target=make, args=(str(n),)) for n in range(16)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    assert {key.name for key in KeyFile(file).all()} == {str(n) for n in range(16)}


def test_a_write_that_fails_leaves_the_file_as_it_was(file, monkeypatch):
    keys = KeyFile(file)
    key, _ = keys.create("n", Scope.SCORE)
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AccessError, match="cannot be written: No space left"):
        keys.revoke(key.id)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


GOOD = {"id": "ab", "name": "n", "scope": "score", "sha256": "0" * 64,
        "created_at": "2026-01-01T00:00:00Z"}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no list of keys: Invalid JSON"),
        ("[]", "no list of keys"),
        ("\xff", "no list of keys"),
        ({"version": 2, "keys": []}, "(at version)"),
        ({"version": 1, "keys": [GOOD, GOOD]}, "two have the same id"),
        ({"version": 1, "keys": [{**GOOD, "scope": "root"}]}, "(at keys.0.scope)"),
        ({"version": 1, "keys": [{**GOOD, "sha256": "secret"}]}, "(at keys.0.sha256)"),
        ({"version": 1, "keys": [{**GOOD, "expires_at": "2026-01-01T00:00:00"}]}, "expires_at"),
        ({"version": 1, "keys": [{**GOOD, "expires": None}]}, "(at keys.0.expires)"),
    ],
)
def test_what_is_no_list_of_keys_is_named_and_not_shown(file, content, says):
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(AccessError, match=re.escape(says)) as caught:
        open_keys(str(file))
    assert str(file) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_setting_may_hold_the_keys_themselves(r2m, file, monkeypatch):
    KeyFile(file).create("boss", Scope.ADMIN)
    keys = open_keys(file.read_text())
    assert isinstance(keys, GivenKeys)
    assert [key.name for key in keys.all()] == ["boss"]
    with pytest.raises(AccessError, match=r"R2M_KEYS"):
        open_keys("{}")
    # Nobody wants to see it in a table, and an empty variable is none.
    monkeypatch.setenv("R2M_KEYS", file.read_text())
    assert "sha256" not in r2m("config", "--model", "m").stdout
    monkeypatch.setenv("R2M_KEYS", "")
    assert Settings(model="m").keys is None


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("no-such-host.invalid:1", False),
    ],
)
def test_what_is_loopback(address, loopback):
    assert is_loopback(address) == loopback


@pytest.mark.parametrize("flag", ["http", "grpc"])
def test_beyond_loopback_keys_are_needed_or_the_word(file, tmp_path, flag):
    def opened(**more):
        return open_access(Settings(model="m", **{flag: "0.0.0.0:0"}, **more))

    with pytest.raises(AccessError, match=rf"--{flag} 0\.0\.0\.0:0 is open to other machines"):
        opened()
    assert opened(insecure=True).notes[0] == (
        True, f"--insecure: no keys, and --{flag} 0.0.0.0:0 is open to others"
    )  # fmt: skip
    key, _ = KeyFile(file).create("n", Scope.SCORE)
    serious, note = opened(keys=str(file)).notes[0]
    assert serious
    assert "keys travel in plain text" in note
    cert, private = Authority(tmp_path / "ca").issue("server")
    assert opened(keys=str(file), tls_cert=cert, tls_key=private).notes == ()
    # A list of keys none of which opens anything is a mistake, also where --insecure is said.
    KeyFile(file).revoke(key.id)
    with pytest.raises(AccessError, match="there is no valid key"):
        opened(keys=str(file), insecure=True)


def test_on_loopback_it_is_said_that_there_are_no_keys():
    access = open_access(Settings(model="m", ops="0.0.0.0:0"))
    assert access.keys is None
    assert access.notes == (
        (False, "no keys: whoever is on this machine may call (loopback alone)"),
    )
