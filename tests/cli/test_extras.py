"""A package that a setting needs is named, with what installs it, before a model is looked at."""

import json
import subprocess
import sys

import pytest

from r2m_service.extras import missing_packages
from r2m_service.settings import Settings

OPTIONAL = ("psycopg", "s3fs", "pyarrow", "opentelemetry.exporter")
"""What a bare install of the extra `service` lacks; FastAPI may bring OpenTelemetry's API."""
MODULES = ("r2m_service.journal.writer", "r2m_service.telemetry.tracing")
"""Ours that import them."""
NEEDED = {
    "registry": ("postgresql://r2m:secret@db.example/r2m", "psycopg", "postgres"),
    "blobs": ("s3://key:secret@bucket/r2m", "s3fs", "s3"),
    "journal": ("./journal", "pyarrow", "journal"),
    "otlp_endpoint": ("http://127.0.0.1:4318", "opentelemetry.exporter.otlp", "otel"),
}


@pytest.mark.parametrize("setting", NEEDED)
def test_each_setting_names_its_package_and_the_extra(setting, monkeypatch):
    # What is imported already would be found all the same.
    for name in list(sys.modules):
        if name in MODULES or name.startswith(tuple(f"{package}." for package in OPTIONAL)):
            monkeypatch.delitem(sys.modules, name)
    for package in OPTIONAL:
        monkeypatch.setitem(sys.modules, package, None)
    value, package, extra = NEEDED[setting]
    missing = missing_packages(Settings(model="m", **{setting: value}))
    flag = f"--{setting.replace('_', '-')}"
    assert str(missing) == f"{flag} needs the package {package}: pip install 'r2m-serve[{extra}]'"


@pytest.mark.timeout(300)
def test_serve_says_it_before_it_looks_for_the_model_and_the_doctor_in_the_same_words(tmp_path):
    flags = ["--model", "./nowhere", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    for setting, (value, *_) in NEEDED.items():
        flags += [f"--{setting.replace('_', '-')}", value]

    def run(command, *more):
        start = f"from r2m_service.cli import {command}; {command}(prog_name='r2m')"
        code = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL})); {start}"
        line = [sys.executable, "-c", code, *flags, *more]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)

    served, examined = run("serve"), run("doctor", "--no-model", "--json")
    findings = {one["check"]: one for one in json.loads(examined.stdout)["findings"]}
    said = findings["extras"]
    assert said["level"] == "problem"
    assert said["mend"] == "pip install 'r2m-serve[journal,otel,postgres,s3]'"
    assert served.returncode == 1
    assert served.stderr.splitlines()[-1] == f"Error: {said['found']}: {said['mend']}"
    assert "secret" not in served.stderr
    # One cause, one finding: what cannot be opened for want of a package is not judged again.
    assert not {"database", "blobs"} & set(findings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value", "package"),
    [
        ("registry", "postgresql+psycopg2://db.example/r2m", "psycopg2"),
        ("blobs", "gs://bucket/r2m", "gcsfs"),
        ("blobs", "abfs://container/r2m", "adlfs"),
        ("blobs", "sftp://host/r2m", "paramiko"),
        ("blobs", "simplecache::gs://bucket/r2m", "gcsfs"),
    ],
)
def test_a_driver_that_no_extra_brings_is_named_itself(setting, value, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    missing = missing_packages(Settings(model="m", **{setting: value}))
    assert str(missing) == f"--{setting} needs the package {package}: pip install {package}"
    assert missing.settings == {setting}


def test_a_package_that_is_there_and_does_not_work_is_no_stack_trace(monkeypatch, tmp_path):
    (tmp_path / "psycopg.py").write_text("raise ImportError('no pq wrapper available\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "psycopg", raising=False)
    assert str(missing_packages(Settings(model="m", registry="postgresql://db.example/r2m"))) == (
        "--registry needs the package psycopg, which cannot be imported (no pq wrapper available): "
        "pip install 'r2m-serve[postgres]'"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"registry": "sqlite:///r2m.db", "blobs": "file:///tmp/blobs"},
        {"registry": "nothing of:the/kind", "blobs": "nothing://bucket"},  # refused by its own name
        {"blobs": "memory://blobs"},
    ],
)
def test_what_needs_no_package_asks_for_none(settings):
    assert missing_packages(Settings(model="m", **settings)) is None
