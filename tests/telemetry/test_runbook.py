"""From an alert to a rollback with the page alone: its link, and the commands found there."""

import contextlib
import pathlib
import re
import shlex
import subprocess
import time

import httpx
import pytest
import yaml
from click.testing import CliRunner
from support.processes import free_port
from support.rollouts import WIDTH_P, groups, samples
from support.scraping import program

from r2m_client import Client, Label
from r2m_client.cli import main
from r2m_service.domain.audit import BASELINE, WINDOW

ROOT = pathlib.Path(__file__).parents[2]
ALERT = "R2MAuditedGapAlarm"
BEFORE = 4
METHOD = {
    "width": 16,
    "audit_rate": 1.0,
    "judge_share": 1.0,
    "gate": {"spread_min": None, "spread_max": None, "rank_correlation_min": None},
}


@contextlib.contextmanager
def prometheus(target, folder):
    """A real one that scrapes every second and knows the rules; its address."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "observability" / "rules.yaml")],
        "scrape_configs": [{"job_name": "r2m", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [program("prometheus"), f"--config.file={folder / 'prometheus.yaml'}",
         f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={url[7:]}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def alerts(url, run):
    """Names of the alerts that fire for a run, with their runbook links."""
    try:
        found = httpx.get(f"{url}/api/v1/alerts", timeout=10).json()["data"]["alerts"]
    except httpx.TransportError:
        return {}
    return {
        one["labels"]["alertname"]: one["annotations"]["runbook_url"]
        for one in found
        if one["labels"].get("run") == run and one["state"] == "firing"
    }


def wait_for(condition):
    until = time.monotonic() + 90  # a monitor that is slow is no failure of ours
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def commands(link):
    """The commands of the section that a link leads to."""
    page, _, anchor = link.partition("#")
    sections = re.split(r"^### ", (ROOT / page).read_text(), flags=re.M)
    (section,) = [one for one in sections if one.partition("\n")[0].lower() == anchor]
    blocks = re.findall(r"^```\n(.*?)^```", section, flags=re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.mark.timeout(300)
def test_from_the_alarm_to_a_rollback(server, run_name, tmp_path, monkeypatch):
    run = run_name
    monkeypatch.setenv("R2M_URL", server.urls["http"])
    with Client(server.urls["http"], retries=0) as client:
        client.create_run(run, policy_hidden_size=WIDTH_P, method=METHOD)
        for step in range(1, 7):
            assert client.align(run, step=step, groups=groups(step)).accepted
        grown = client.run(run)
        number = 0

        def grade(shift, count):
            nonlocal number
            for _ in range(count // 8):
                sent = samples(number, group=f"u{number}", count=8)
                client.score(sent, run=run)
                number += 1
                client.add_labels(
                    run, [Label(id=s.id, grade=n % 2 - shift) for n, s in enumerate(sent)]
                )

        with prometheus(server.urls["http"][7:], tmp_path) as monitor:
            grade(0.0, BASELINE)
            wait_for(lambda: httpx_up(monitor))
            assert ALERT not in alerts(monitor, run)
            grade(1.5, 4 * WINDOW)  # people like it less and less; its rewards stay
            wait_for(lambda: ALERT in alerts(monitor, run))
            assert client.score(samples(999), run=run).advice == "stop"

            steps = commands(alerts(monitor, run)[ALERT])
            assert [one[:2] for one in steps] == [
                ["r2m", "rollback"], ["r2m", "freeze"], ["r2m", "unfreeze"],
            ]  # fmt: skip
            for command in steps:
                own = [{"RUN": run, "400": str(BEFORE)}.get(word, word) for word in command[1:]]
                done = CliRunner().invoke(main, own)
                assert done.exit_code == 0, done.output

            wait_for(lambda: ALERT not in alerts(monitor, run))
        back = client.run(run)
        lineage = CliRunner().invoke(main, ["heads", "log", run])
        assert back.branch != grown.branch
        assert (back.next_step, back.frozen, back.advice) == (BEFORE + 1, None, "ok")
        assert back.head < grown.head
        assert lineage.exit_code == 0
        answer = client.align(run, step=BEFORE + 1, groups=groups(77), branch=back.branch)
        assert answer.parent == back.head


def httpx_up(monitor):
    with contextlib.suppress(httpx.TransportError, ValueError):
        query = {"query": 'up{job="r2m"}'}
        found = httpx.get(f"{monitor}/api/v1/query", params=query, timeout=10).json()
        return bool(found["data"]["result"])
    return False
