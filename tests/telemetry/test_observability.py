"""Dashboard, rules and runbooks: what they name exists, and every alert fires."""

import json
import pathlib
import re
import subprocess
import time

import httpx
import pytest
import yaml
from support.processes import free_port
from support.rollouts import WIDTH_P, groups, samples
from support.scraping import program, scrape

from r2m_client import Client
from r2m_service.telemetry.catalogue import CATALOGUE

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "observability"
METRICS = {one.name: one for group in CATALOGUE.values() for one in group}
OF_PROMETHEUS = {"instance", "job"}
FOREIGN = {"up": set(), "process_resident_memory_bytes": set()}


def panels():
    board = json.loads((FOLDER / "r2m.json").read_text())
    for one in board["panels"]:
        for target in one.get("targets", []):
            yield one["title"], target["expr"]


def rules():
    for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]:
        yield from group["rules"]


def alerts():
    return {one["alert"]: one for one in rules() if "alert" in one}


RECORDED = {one["record"]: one for one in rules() if "record" in one}
EXPRESSIONS = [*panels(), *((one.get("record") or one["alert"], one["expr"]) for one in rules())]


def labels_of(name):
    """The labels a name may be matched by; raises where there is no such metric."""
    if name in RECORDED or name in FOREIGN:
        return OF_PROMETHEUS | {"run"}
    for suffix in ("", "_bucket", "_sum", "_count"):
        metric = METRICS.get(name.removesuffix(suffix) if suffix else name)
        if metric is not None and (not suffix or metric.kind == "histogram"):
            assert suffix or metric.kind != "histogram", f"{name} is a histogram: _bucket, …"
            return {*metric.labels, *OF_PROMETHEUS, *({"le"} if suffix == "_bucket" else ())}
    raise AssertionError(f"there is no metric {name}")


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_what_is_asked_for_exists(where, expression):
    bare = re.sub(r'"[^"]*"', '""', expression)
    selectors = re.findall(r"([a-zA-Z_][\w:]*)(?:\{([^}]*)\})?", re.sub(r"\[[^\]]*\]", "", bare))
    found = [(name, matchers) for name, matchers in selectors if re.match(r"r2m_|\w+:|up$", name)]
    assert found, "no metric in it"
    labels = set.union(*(labels_of(name) for name, _ in found))
    for name, matchers in found:
        assert set(re.findall(r"(\w+)\s*(?:=|!)", matchers)) <= labels_of(name), name
    for grouped in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        assert {one.strip() for one in grouped.split(",") if one.strip()} <= labels


def test_the_check_finds_what_is_wrong():
    for name in ("r2m_nothing", "r2m_requests", "r2m_ready_count", "r2m_request_seconds"):
        with pytest.raises(AssertionError):
            labels_of(name)


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_a_run_of_several_replicas_is_one_run(where, expression):
    """Each replica exports every run, so a run's metric is aggregated over them."""
    over_replicas = r"(?:by \(run[^)]*\)|without \(instance, pod[^)]*\)) \((?:rate\()?"
    aggregated = re.findall(rf"{over_replicas}r2m_run_\w+", expression)
    assert len(aggregated) == len(re.findall(r"r2m_run_\w+", expression))


def test_the_dashboard_has_its_rows_and_nothing_twice():
    board = json.loads((FOLDER / "r2m.json").read_text())
    rows = [one["title"] for one in board["panels"] if one["type"] == "row"]
    assert rows == ["Traffic", "Latency", "Batching", "Learning", "Drift", "Heads"]
    titles = [one["title"] for one in board["panels"]]
    assert len(titles) == len(set(titles))
    ids = [one["id"] for one in board["panels"]]
    assert len(ids) == len(set(ids))


def test_every_alert_has_a_runbook_and_a_test_that_fires_it():
    page = (ROOT / "docs" / "operations.md").read_text()
    sections = set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
    assert sections == set(alerts())
    fired = {
        case["alertname"]
        for test in yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
        for case in test.get("alert_rule_test", ())
        if case["exp_alerts"]
    }
    assert fired == set(alerts())
    for name, one in alerts().items():
        assert one["labels"]["severity"] in ("page", "warning", "info")
        assert one["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
        assert one["annotations"].keys() == {"summary", "description", "runbook_url"}
        section = page.split(f"### {name}\n")[1].split("\n### ")[0]
        assert all(word in section for word in ("**Means**", "**Look at**", "**Do**")), name


def test_panels_named_in_runbooks_exist():
    page = (ROOT / "docs" / "operations.md").read_text().split("## Alerts")[1]
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", page)) - {"Read a verdict"}
    assert named <= {title for title, _ in panels()}
    assert len(named) > 5


@pytest.mark.parametrize(
    "arguments",
    [["check", "rules", "rules.yaml"], ["check", "config", "prometheus.yaml"],
     ["test", "rules", "rules_test.yaml"]],
    ids=" ".join,
)  # fmt: skip
def test_promtool_takes_it(arguments):
    run = subprocess.run(
        [program("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def lived(server):
    """A server with something of everything."""
    name = "lived"
    for kind in ("http", "grpc"):
        with Client(server.urls[kind], wire_dtype="float32", retries=0) as client:
            client.create_run(
                name,
                policy_hidden_size=WIDTH_P,
                method={"width": 16, "audit_rate": 1.0, "controls": ["none"]},
            )
            client.score(samples(1), run=name)
            client.score(samples(2, hidden=False))
            client.align(name, step=client.run(name).step + 1, groups=groups(1))
    return name


def test_promtool_finds_nothing_to_mend(server):
    lived(server)
    found = scrape(server)
    run = subprocess.run(
        [program("promtool"), "check", "metrics"], input=found.text, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_all_that_is_exposed_is_in_the_catalogue(server):
    lived(server)
    text = scrape(server).text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    ours = {name: kind for name, kind in kinds.items() if not name.startswith("process_")}
    assert {name: (METRICS[name].kind, METRICS[name].help) for name in ours} == {
        name: (kind, helps[name]) for name, kind in ours.items()
    }
    absent = ("device_memory", "run_anchor", "run_audited_gap$", "run_label_", "run_control_[^p]")
    # A GPU, anchors, a window of judged labels, labelled groups.
    not_here = {name for name in METRICS if re.match(rf"r2m_({'|'.join(absent)})", name)}
    assert METRICS.keys() - ours.keys() <= not_here


CONFIG = """\
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [RULES]
scrape_configs:
  - job_name: r2m
    static_configs: [{targets: ["TARGET"]}]
"""


def test_a_real_prometheus_scrapes_it(server, tmp_path):
    """It takes the metrics, evaluates every rule, and answers every query of the dashboard."""
    binary = program("prometheus")
    run = lived(server)
    target = server.urls["http"].removeprefix("http://")
    config = tmp_path / "prometheus.yaml"
    rules_file = json.dumps(str(FOLDER / "rules.yaml"))
    config.write_text(CONFIG.replace("RULES", rules_file).replace("TARGET", target))
    url = f"http://127.0.0.1:{free_port()}"
    log = tmp_path / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [binary, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
             f"--web.listen-address={url.removeprefix('http://')}"],
            stdout=said, stderr=said,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=url, timeout=30) as monitor:

            def ask(query):
                answer = monitor.get("/api/v1/query", params={"query": query}).json()
                assert answer["status"] == "success", (query, answer)
                return {
                    one["metric"].get("run", ""): float(one["value"][1])
                    for one in answer["data"]["result"]
                }

            def scraped():
                try:
                    return ask(f'r2m_run_step{{run="{run}"}}')
                except (httpx.TransportError, json.JSONDecodeError):
                    return {}  # while it starts it refuses, or answers in words

            until = time.monotonic() + 100  # a monitor that is slow is no failure of ours
            while not scraped():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            step = scrape(server).get("r2m_run_step", run=run)
            assert ask(f'r2m_run_step{{run="{run}"}}') == {run: step}
            assert ask('up{job="r2m"}') == {"": 1.0}
            for _, query in panels():
                for name, value in (
                    ("$instance", ".*"),
                    ("$run", ".*"),
                    ("$__rate_interval", "1m"),
                ):
                    query = query.replace(name, value)
                ask(query)
            while any(one["health"] == "unknown" for one in evaluated(monitor)):
                assert time.monotonic() < until
                time.sleep(0.1)
            assert {one["health"] for one in evaluated(monitor)} == {"ok"}
            assert len(evaluated(monitor)) == len(list(rules()))
    finally:
        process.terminate()
        process.wait(30)


def evaluated(monitor):
    groups = monitor.get("/api/v1/rules").json()["data"]["groups"]
    return [one for group in groups for one in group["rules"]]
