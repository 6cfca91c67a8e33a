"""What `r2m doctor` says of keys, certificates and open addresses."""

import json

import pytest
from support.certificates import Authority

from r2m_service.access.keyfile import KeyFile
from r2m_service.doctor import CHECKS
from r2m_service.doctor.access import check_keys, check_tls
from r2m_service.doctor.finding import Patient
from r2m_service.doctor.ports import check_grpc, check_http, check_ops
from r2m_service.domain.access import Scope
from r2m_service.settings import Settings


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ca")


@pytest.fixture
def keys(tmp_path):
    file = KeyFile(tmp_path / "keys.json")
    file.create("n", Scope.ADMIN)
    return file


def found(check, **settings):
    finding = check(Patient(Settings(model="m", **settings)))
    return None if finding is None else (str(finding.level), finding.found)


def test_it_looks_at_all_of_it():
    assert {check_keys, check_tls, check_ops} <= {check for _, check in CHECKS}


def test_keys(keys):
    assert found(check_keys) == ("ok", "none: whoever is on this machine may call")
    assert found(check_keys, http="0.0.0.0:0") == (
        "problem", "none, and --http 0.0.0.0:0 is open to other machines"
    )  # fmt: skip
    assert found(check_keys, http="0.0.0.0:0", insecure=True)[0] == "ok"
    path = str(keys.path)
    assert found(check_keys, keys=path) == ("ok", "1 of 1 are valid")
    keys.path.chmod(0o644)
    assert found(check_keys, keys=path) == (
        "warning", f"other users may read {path}: names and scopes"
    )  # fmt: skip
    keys.path.chmod(0o620)
    assert found(check_keys, keys=path)[0] == "problem"
    assert found(check_keys, keys=keys.path.read_text()) == ("ok", "1 of 1 are valid")
    keys.revoke(keys.all()[0].id)
    assert found(check_keys, keys=path) == ("problem", "0 of 1 are valid")
    keys.path.unlink()
    assert found(check_keys, keys=path)[0] == "problem"


def test_certificates(authority, keys):
    assert found(check_tls) is None
    level, said = found(check_tls, http="0.0.0.0:0", keys=str(keys.path))
    assert (level, said) == ("warning", "keys travel to --http 0.0.0.0:0 in plain text")
    cert, key = authority.issue("good")
    level, said = found(check_tls, tls_cert=cert, tls_key=key, tls_client_ca=authority.ca)
    assert level == "ok"
    assert "fits its key and is valid until" in said
    assert said.endswith("clients need one too")
    cert, key = authority.issue("soon", days=3)
    level, said = found(check_tls, tls_cert=cert, tls_key=key)
    assert level == "warning"
    assert "ends on" in said
    level, said = found(check_tls, tls_cert=cert, tls_key=authority.issue("other")[1])
    assert level == "problem"
    assert "is not the key of the certificate" in said


def test_open_addresses(keys):
    for check, flag in ((check_http, "http"), (check_grpc, "grpc")):
        address = {flag: "0.0.0.0:0"}
        assert found(check, **address, insecure=True)[0] == "warning"
        assert found(check, **address, keys=str(keys.path))[0] == "ok"
        assert found(check, **address)[0] == "ok"  # check_keys has it
    assert found(check_ops) is None
    assert found(check_ops, ops="0.0.0.0:0")[0] == "ok"
    assert found(check_ops, ops="127.0.0.1:8080")[0] == "problem"


def test_as_a_command(r2m, reward_model, tmp_path):
    result = r2m("doctor", "--no-model", "--model", reward_model, "--state", tmp_path / "s",
                 "--http", "0.0.0.0:0", "--grpc", "127.0.0.1:0", "--json")  # fmt: skip
    assert result.exit_code == 1
    problems = [one for one in json.loads(result.stdout)["findings"] if one["level"] == "problem"]
    assert [one["check"] for one in problems] == ["keys"]
