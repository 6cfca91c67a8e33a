"""Helm run as a command, and what it makes read as objects."""

from __future__ import annotations

import functools
import pathlib
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
CHART = ROOT / "helm" / "r2m"
DEPLOY = ROOT / "tests" / "deploy"
VALUES = sorted((DEPLOY / "values").glob("*.yaml"))
HELMS = ("helm3", "helm4")
# What the cluster's own schemas do not know: extensions that must be installed there.
EXTENSIONS = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}


def helm(which, *arguments):
    """Run Helm 3 or 4; skips the test where it was not fetched."""
    found = sorted((ROOT / ".cache" / "helm").glob(f"{which}-*[0-9]"))
    if not found:
        pytest.skip(f"{which} is not here: make deploy-tools fetches it")
    return subprocess.run([found[-1], *arguments], capture_output=True, text=True, timeout=60)


def template(which, *arguments):
    """The chart's output as text; `arguments` are values."""
    done = helm(which, "template", "r2m", CHART, "--namespace", "rewards", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(which, *arguments):
    """What Helm says of values that it does not take."""
    done = helm(which, "template", "r2m", CHART, *arguments)
    assert done.returncode != 0, done.stdout
    return done.stderr


def objects(text):
    return [one for one in yaml.safe_load_all(text) if one]


@functools.cache
def golden(name):
    """The objects of a golden file: what Helm 3 and 4 make of values of that name."""
    return objects((DEPLOY / "golden" / f"{name}.yaml").read_text())


def only(found, kind, name=None):
    """The one object of a kind (and a name)."""
    (one,) = [
        one for one in found
        if one["kind"] == kind and name in (None, one["metadata"]["name"])
    ]  # fmt: skip
    return one


def container(found):
    (one,) = only(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    return one


def environment(found):
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container(found)["env"]}
