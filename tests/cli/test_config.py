"""`r2m config`, and the flags that it shares with serve and doctor."""

import json
from typing import Annotated

import click
import pytest
from pydantic import Field

from r2m_service import cli, settings, sources
from r2m_service.cli import _config, _flags
from r2m_service.settings import Hide, Settings


def test_the_table_tells_value_source_and_meaning(r2m, tmp_path, monkeypatch):
    file = tmp_path / "r2m.toml"
    file.write_text('model = "./rm"\ndtype = "float32"\ndeterministic = true\n')
    monkeypatch.setenv("R2M_HTTP", "127.0.0.1:9")
    result = r2m("config", "--config", file, "--no-deterministic", "--threads", "2")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert list(rows) == ["SETTING", *Settings.model_fields]
    for name, words in (
        ("model", ["./rm", f"model in {file}", "reward model: a folder"]),
        ("dtype", ["float32", f"dtype in {file}"]),
        ("http", ["127.0.0.1:9", "R2M_HTTP", "HTTP address"]),
        ("deterministic", ["false", "--no-deterministic"]),
        ("threads", [" 2 ", "--threads"]),
        ("grpc", ["127.0.0.1:50051", "default"]),
        ("max_length", [" - ", "default"]),
    ):
        for word in words:
            assert word in rows[name]


def test_the_json_holds_the_same_with_types(r2m, monkeypatch):
    monkeypatch.setenv("R2M_TOKEN_BUDGET", "5")
    result = r2m("config", "--model", "m", "--json", "--registry", "postgresql://u:secret@h/db")
    found = json.loads(result.stdout)
    assert found["file"] is None
    rows = {row["setting"]: row for row in found["settings"]}
    assert list(rows) == list(Settings.model_fields)
    assert (rows["token_budget"]["value"], rows["token_budget"]["from"]) == (5, "environment")
    assert rows["token_budget"]["as"] == "R2M_TOKEN_BUDGET"
    assert (rows["model"]["value"], rows["model"]["from"]) == ("m", "flag")
    assert (rows["drain_seconds"]["from"], rows["drain_seconds"]["as"]) == ("default", None)
    assert rows["registry"]["value"] == "postgresql://***@h/db"
    assert "secret" not in result.output


def test_a_missing_value_leaves_the_others_to_be_seen(r2m):
    result = r2m("config", "--threads", "3")
    assert result.exit_code == 1
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "missing" in rows["model"]
    assert "--threads" in rows["threads"]
    assert "model is needed" in result.stderr


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--model", "m", "--http", "nonsense"], "--http: is HOST:PORT"),
        (["--http", "nonsense"], "--http: is HOST:PORT"),
        (["--model", "m", "--dtype", "int8"], "--dtype: "),
        (["--model", "m", "--config", "/nowhere.toml"], "no settings file /nowhere.toml"),
    ],
)
@pytest.mark.parametrize("command", ["config", "serve", "doctor"])
def test_wrong_values_are_one_sentence_and_exit_1(r2m, command, flags, word):
    result = r2m(command, *flags)
    assert result.exit_code == 1
    assert word in (result.stdout if command == "doctor" else result.stderr)
    if command != "doctor":
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""


@pytest.mark.parametrize("command", ["config", "serve", "doctor"])
def test_unknown_names_are_refused_in_all_three_sources(r2m, command, tmp_path, monkeypatch):
    result = r2m(command, "--model", "m", "--max-lenght", "3")
    assert result.exit_code == 2
    assert "--max-length" in result.stderr
    (tmp_path / "r2m.toml").write_text("max_lenght = 3")
    result = r2m(command, "--model", "m", "--config", tmp_path / "r2m.toml")
    assert result.exit_code == 1
    assert "the nearest is max_length" in result.output
    monkeypatch.setenv("R2M_MAX_LENGHT", "3")
    result = r2m(command, "--model", "m")
    assert result.exit_code == 1
    assert "the nearest is R2M_MAX_LENGTH" in result.output


def test_the_three_commands_have_the_same_flags():
    flags = {
        name: {flag for one in command.params for flag in [*one.opts, *one.secondary_opts]}
        for name, command in ((name, getattr(cli, name)) for name in cli.__all__)
    }
    assert flags["config"] - flags["serve"] == {"--json"}
    assert flags["doctor"] - flags["serve"] == {"--json", "--no-model", "--deep", "--repair"}
    assert flags["serve"] <= flags["config"]
    assert flags["serve"] <= flags["doctor"]
    assert {f"--{name.replace('_', '-')}" for name in Settings.model_fields} < flags["serve"]


def test_a_secret_is_shown_as_set(r2m, monkeypatch):
    class WithKey(Settings):
        key: Annotated[str | None, Hide("value")] = Field(default=None, description="a secret")
        pin: Annotated[int | None, Hide("value")] = Field(default=None, description="a number")

    for module in (settings, sources, _config, _flags):
        monkeypatch.setattr(module, "Settings", WithKey)
    for module in (sources, _config):
        monkeypatch.setattr(module, "NAMES", tuple(WithKey.model_fields))
    monkeypatch.setenv("R2M_KEY", "hunter2")
    result = r2m("config", "--model", "m", "--json")
    rows = {row["setting"]: row for row in json.loads(result.stdout)["settings"]}
    assert (rows["key"]["value"], rows["key"]["as"]) == ("set", "R2M_KEY")
    assert rows["pin"]["value"] is None
    monkeypatch.setenv("R2M_PIN", "hunter2")
    wrong = r2m("config", "--model", "m")
    assert "R2M_PIN: " in wrong.stderr
    assert "hunter2" not in result.output + wrong.output


def test_config_as_a_process(r2m_process, tmp_path):
    file = tmp_path / "r2m.toml"
    file.write_text("token_budget = 9")
    done = r2m_process("config", "--json", R2M_CONFIG=str(file), R2M_MODEL="m")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["setting"]: row for row in json.loads(done.stdout)["settings"]}
    assert (rows["token_budget"]["value"], rows["token_budget"]["from"]) == (9, "file")
    assert rows["model"]["as"] == "R2M_MODEL"
    refused = r2m_process("config", R2M_MODLE="m")
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "Error: environment: R2M_MODLE is no setting; the nearest is R2M_MODEL"
    ]


def test_config_loads_no_torch(r2m_process):
    done = r2m_process("config", "--model", "m", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert "pydantic" in done.stderr
    assert "torch" not in done.stderr


def test_commands_are_click_commands():
    assert all(isinstance(getattr(cli, name), click.Command) for name in cli.__all__)
