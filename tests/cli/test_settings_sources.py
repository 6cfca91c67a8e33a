"""Where settings come from, which wins, and what is refused."""

import tomllib

import pytest

from r2m_service.settings import Settings, shown, without_credentials
from r2m_service.sources import ELSEWHERE, NAMES, Origin, SettingsError, collect, variable

LEVELS = [
    # (name, default, by file, by environment, by flag): what was written, and what becomes of it
    ("token_budget", 16384, ("1", 1), ("2", 2), ("3", 3)),
    ("drain_seconds", 20.0, ("1.5", 1.5), ("2.5", 2.5), ("3.5", 3.5)),
    ("dtype", "auto", ('"float32"', "float32"), ("float16", "float16"), ("bfloat16", "bfloat16")),
    ("deterministic", False, ("true", True), ("false", False), (True, True)),
    ("trust_remote_code", False, ("true", True), ("true", True), (False, False)),
]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level[0])
def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(
    level, tmp_path, monkeypatch
):
    name, default, by_file, by_environment, by_flag = level
    file = tmp_path / "r2m.toml"
    for origin, expected in (
        (Origin.DEFAULT, default),
        (Origin.FILE, by_file[1]),
        (Origin.ENVIRONMENT, by_environment[1]),
        (Origin.FLAG, by_flag[1]),
    ):
        if origin is Origin.FILE:
            file.write_text(f"{name} = {by_file[0]}\n")
        if origin is Origin.ENVIRONMENT:
            monkeypatch.setenv(variable(name), by_environment[0])
        flags = {name: by_flag[0] if origin is Origin.FLAG else None}
        given = collect(flags, str(file) if file.exists() else None)
        settings = given.settings(model="m")
        assert (given.origins[name], getattr(settings, name)) == (origin, expected)
        assert {given.origins[other] for other in NAMES if other != name} == {Origin.DEFAULT}


def test_the_variable_names_the_file_and_the_flag_wins(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(f'model = "{name}"')
    monkeypatch.setenv("R2M_CONFIG", str(tmp_path / "a.toml"))
    assert collect({}).settings().model == "a"
    assert collect({}, str(tmp_path / "b.toml")).settings().model == "b"
    assert collect({}, "").file is None  # a flag can also say: no file


def test_an_empty_variable_is_none(tmp_path, monkeypatch):
    (tmp_path / "r2m.toml").write_text('model = "m"\ntoken_budget = 7')
    for name in ("R2M_TOKEN_BUDGET", "R2M_REGISTRY", "R2M_CONFIG"):
        monkeypatch.setenv(name, "")
    given = collect({}, str(tmp_path / "r2m.toml"))
    assert given.settings().token_budget == 7
    assert given.origins["token_budget"] is Origin.FILE
    assert collect({}).file is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_lenght = 3", ["max_lenght is no setting", "nearest is max_length"]),
        ("max-length = 3", ["nearest is max_length"]),
        ("[http]\nport = 3", ["http in ", "string"]),
        ("[server]\nport = 3", ["[server] is a table"]),
        ("threads = true", ["threads is not true or false"]),
        ("threads = ", ["is no TOML"]),
        ('threads = "many"', ["threads in ", "integer", "got 'many'"]),
        ('http = "8080"', ["http in ", "HOST:PORT", "got '8080'"]),
        ("state = 3", ["state in ", "got 3"]),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, words):
    file = tmp_path / "r2m.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        collect({"model": "m"}, str(file)).settings()
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(SettingsError, match="no settings file"):
        collect({}, str(tmp_path / "nowhere.toml"))
    with pytest.raises(SettingsError, match="no settings file"):
        collect({}, str(tmp_path))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="no TOML"):
        collect({}, str(tmp_path / "bytes"))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("R2M_MAX_LENGHT", "R2M_MAX_LENGTH"),
        ("R2M_TOKENS_BUDGET", "R2M_TOKEN_BUDGET"),
        ("R2M_CONFIGURATION", "R2M_CONFIG"),
        ("R2M_HTTP_PORT", "R2M_HTTP"),
    ],
)
def test_an_unknown_variable_is_refused_and_the_nearest_named(monkeypatch, name, nearest):
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"{name} is no setting; the nearest is {nearest}$"):
        collect({})


def test_variables_that_belong_elsewhere_are_left_alone(monkeypatch):
    for name in (ELSEWHERE | {"R2M_TEST_DATA"}) - {"R2M_CONFIG"}:
        monkeypatch.setenv(name, "x")
    assert "R2M_URL" in ELSEWHERE
    assert set(collect({}).origins.values()) == {Origin.DEFAULT}


def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_setting(monkeypatch):
    for service in ("R2M", "R2M_SERVE"):
        for rest, value in (
            ("SERVICE_HOST", "10.0.0.1"),
            ("SERVICE_PORT", "8080"),
            ("SERVICE_PORT_HTTP", "8080"),
            ("PORT", "tcp://10.0.0.1:8080"),
            ("PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("PORT_8080_TCP_PROTO", "tcp"),
            ("PORT_8080_TCP_PORT", "8080"),
            ("PORT_8080_TCP_ADDR", "10.0.0.1"),
        ):
            monkeypatch.setenv(f"{service}_{rest}", value)
    assert set(collect({}).origins.values()) == {Origin.DEFAULT}
    # Where there is no such service, the same names are mistakes.
    monkeypatch.delenv("R2M_SERVE_SERVICE_HOST")
    with pytest.raises(SettingsError, match="R2M_SERVE_PORT"):
        collect({})


def test_what_is_missing_is_told_with_every_way_to_give_it():
    with pytest.raises(SettingsError) as caught:
        collect({}).settings()
    for word in ("--model", "R2M_MODEL", "--config"):
        assert word in str(caught.value)
    assert caught.value.missing == ("model",)


def test_a_wrong_value_is_told_by_the_name_it_was_given_under(monkeypatch):
    with pytest.raises(SettingsError, match=r"^--token-budget: .*got 'many'"):
        collect({"model": "m", "token_budget": "many"}).settings()
    monkeypatch.setenv("R2M_TOKEN_BUDGET", "0")
    with pytest.raises(SettingsError, match=r"^R2M_TOKEN_BUDGET: .*got '0'"):
        collect({"model": "m"}).settings()


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("postgresql://user:secret@db/r2m", "postgresql://***@db/r2m"),
        ("postgresql://user:se@cr/et@db/r2m", "postgresql://***@db/r2m"),
        ("postgresql://db/r2m?password=secret", "postgresql://db/r2m?***"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("./a?b@c", "./a?b@c"),
    ],
)
def test_urls_are_shown_without_credentials(url, safe):
    assert without_credentials(url) == safe
    assert shown("registry", url) == shown("blobs", url) == safe
    assert shown("model", url) == url
    assert shown("registry", None) is None


def test_every_setting_has_a_meaning_and_a_value_to_show():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.examples or field.default is not None, name
        assert tomllib.loads(f"{name} = 1")  # a bare key of TOML
