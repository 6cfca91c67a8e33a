"""The chart with Helm 3 and 4: lint, output, and what is refused."""

import base64
import hashlib
import json
import shutil

import pytest
import yaml
from support.charts import CHART, DEPLOY, HELMS, VALUES, helm, objects, only, refused, template

LEAST = ["-f", DEPLOY / "values" / "least.yaml"]
OWN_KEYS = [*LEAST, "--set", "keys.existingSecret="]


@pytest.mark.parametrize("which", HELMS)
@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_values_pass_lint_and_make_the_golden_file(which, values):
    done = helm(which, "lint", "--strict", CHART, "-f", values)
    assert done.returncode == 0, done.stdout + done.stderr
    made = template(which, "-f", values)
    assert made == (DEPLOY / "golden" / values.name).read_text(), (
        "the chart makes something else: run tests/deploy/golden.py and read the diff"
    )


SHARED = "registry.database.existingSecret=db,registry.blobs.url=s3://bucket/r2m"
CONTRADICTIONS = {
    "no model": ("model.existingClaim=", "there is no model: give model.existingClaim"),
    "two models": ("model.hub=org/rm", "two models"),
    "a folder in no volume": ("model.existingClaim=,model.hub=rm,model.folder=a", "there is none"),
    "database alone": ("registry.database.existingSecret=db", "belong together"),
    "blobs alone": ("registry.blobs.url=s3://bucket/r2m", "belong together"),
    "replicas on one file": ("replicas=2", "needs a registry that they share"),
    "scaling on one file": ("autoscaling.kind=hpa", "more than one replica needs a registry"),
    "a registry that is read-only": (
        "registry.persistence.accessModes={ReadOnlyMany}",
        "the registry is written to, ReadOnlyMany cannot hold it",
    ),
    "minimum above maximum": (
        f"{SHARED},autoscaling.kind=hpa,autoscaling.minReplicas=5",
        "autoscaling.minReplicas is more than autoscaling.maxReplicas",
    ),
    "a cache for one writer": (
        f"{SHARED},replicas=2,model.existingClaim=,model.hub=org/rm",
        "give it ReadWriteMany",
    ),
    "mutual TLS without TLS": ("tls.clientCASecret=ca", "it needs tls.enabled"),
}  # fmt: skip


@pytest.mark.parametrize("which", HELMS)
@pytest.mark.parametrize(("values", "sentence"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_values_that_contradict_each_other_are_refused_with_the_way_out(which, values, sentence):
    assert sentence in refused(which, *LEAST, "--set", values)


@pytest.mark.parametrize("which", HELMS)
@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("settings.token_budgett=1", "token_budgett"),
        ("settings.dtype=int4", "dtype"),
        ("settings.http=1.2.3.4:80", "http"),
        ("settings.keep_heads=0", "keep_heads"),
        ("replica=2", "replica"),
        ("model.folder=../secrets", "folder"),
        ("registry.persistence.accessModes={Sometimes}", "accessModes"),
    ],
)
def test_values_outside_the_schema_are_refused_by_name(which, value, named):
    assert named in refused(which, *LEAST, "--set", value)


@pytest.mark.parametrize("which", HELMS)
def test_a_key_is_made_in_the_form_of_r2m_keys_and_another_each_time(which):
    secrets = [only(objects(template(which, *OWN_KEYS)), "Secret") for _ in range(2)]
    one, two = (secret["stringData"] for secret in secrets)
    assert one["api-key"] != two["api-key"]
    assert one["keys.json"] != two["keys.json"]
    (entry,) = json.loads(one["keys.json"])["keys"]
    mark, identity, secret = one["api-key"].split("_")
    assert (mark, identity) == ("r2m", entry["id"])
    assert len(secret) == 64
    assert entry["sha256"] == hashlib.sha256(one["api-key"].encode()).hexdigest()
    assert entry["scope"] == "admin"


def test_the_server_reads_the_key_file_of_the_chart():
    reason = "the server has no keys yet"
    keyfile = pytest.importorskip("r2m_service.access.keyfile", reason=reason)
    secret = only(objects(template("helm3", *OWN_KEYS)), "Secret")["stringData"]
    (key,) = keyfile.parse_keys(secret["keys.json"], where="the chart").values()
    assert key.matches(secret["api-key"])


@pytest.mark.parametrize("which", HELMS)
def test_a_certificate_is_made_for_the_services_names(which):
    made = objects(template(which, *LEAST, "--set", "tls.enabled=true"))
    data = only(made, "Secret", "r2m-tls")["data"]
    assert set(data) == {"ca.crt", "tls.crt", "tls.key"}
    certificate = base64.b64decode(data["tls.crt"])
    assert certificate.startswith(b"-----BEGIN CERTIFICATE-----")
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed")
    names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert "r2m.rewards.svc" in names.value.get_values_for_type(x509.DNSName)


RULES = """\
groups:
  - name: g
    rules:
      - alert: A
        expr: up == 0
        annotations: {summary: "{{ $labels.instance }} is gone"}
"""
BOARD = json.dumps({"title": "R2M", "legend": "{{run}}"}, indent=1)
ALL_METRICS = [
    "--set", "metrics.prometheusRule.enabled=true,metrics.prometheusRule.labels.release=prom",
    "--set", "metrics.dashboard.enabled=true",
]  # fmt: skip


@pytest.mark.parametrize("which", HELMS)
def test_rules_and_dashboards_of_the_charts_folder_become_objects(which, tmp_path):
    chart = shutil.copytree(CHART, tmp_path / "r2m")
    shutil.rmtree(chart / "files", ignore_errors=True)
    for name, text in {"rules/r2m.yaml": RULES, "dashboards/r2m.json": BOARD}.items():
        (chart / "files" / name).parent.mkdir(parents=True)
        (chart / "files" / name).write_text(text)
    done = helm(which, "template", "r2m", chart, *LEAST, *ALL_METRICS)
    assert done.returncode == 0, done.stderr
    rules = only(objects(done.stdout), "PrometheusRule")
    assert rules["spec"] == yaml.safe_load(RULES)
    assert rules["metadata"]["labels"]["release"] == "prom"
    board = only(objects(done.stdout), "ConfigMap")
    assert json.loads(board["data"]["r2m.json"]) == json.loads(BOARD)
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize("which", HELMS)
def test_what_was_copied_becomes_objects_as_it_is(which):
    made = objects(template(which, *LEAST, *ALL_METRICS))
    rules = [one["spec"] for one in made if one["kind"] == "PrometheusRule"]
    assert rules == [yaml.safe_load(p.read_text()) for p in (CHART / "files").glob("rules/*.yaml")]
    boards = [json.loads(text) for one in made if one["kind"] == "ConfigMap"
              for text in one["data"].values()]  # fmt: skip
    assert boards == [
        json.loads(p.read_text()) for p in sorted((CHART / "files").glob("dashboards/*.json"))
    ]


@pytest.mark.parametrize("which", HELMS)
def test_values_of_one_flag_keep_their_numbers_whole(which):
    made = template(which, *LEAST, "--set", "settings.cache_bytes=1099511627776")
    assert 'value: "1099511627776"' in made
