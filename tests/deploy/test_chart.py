"""The chart with Helm 3 and 4: lint, output, and what is refused."""

import base64
import hashlib
import json
import re
import shutil

import pytest
import yaml
from support.charts import (
    CHART,
    DEPLOY,
    HELMS,
    VALUES,
    container,
    environment,
    helm,
    objects,
    only,
    refused,
    template,
)

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "PGSSLROOTCERT")
"""Of Python and OpenSSL, of requests (OTLP), of S3's clients, of libpq."""
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
    "a volume that is not there": (
        "model.existingClaim=,model.extraVolume=a",
        "is none of extraVolumes",
    ),
    "two sources of the CA": ("caBundle.configMap=a,caBundle.secret=b", "not both"),
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
        ("extraVolumes[0].name=tmp", "extraVolumes"),
        ("initContainers[0].name=fetch", "image"),
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


@pytest.mark.parametrize("which", HELMS)
@pytest.mark.parametrize("kind", SCHEMA["properties"]["service"]["properties"]["type"]["enum"])
def test_keda_asks_for_what_the_monitor_scrapes_whatever_the_services_type(which, kind):
    more = f"{SHARED},autoscaling.kind=keda,metrics.serviceMonitor.enabled=true"
    made = objects(template(which, *LEAST, "--set", f"{more},service.type={kind}"))
    monitor = only(made, "ServiceMonitor")["spec"]
    wanted, ports = (
        monitor["selector"]["matchLabels"],
        {one["port"] for one in monitor["endpoints"]},
    )
    # As Prometheus' operator does: the label `service` is the name of the Service it went through.
    scraped = [
        one["metadata"]["name"] for one in made
        if one["kind"] == "Service" and wanted.items() <= one["metadata"]["labels"].items()
        and ports & {port["name"] for port in one["spec"]["ports"]}
    ]  # fmt: skip
    (trigger,) = only(made, "ScaledObject")["spec"]["triggers"]
    assert re.findall(r'service="([^"]*)"', trigger["metadata"]["query"]) == scraped


@pytest.mark.parametrize("which", HELMS)
@pytest.mark.parametrize("seconds", [10, 1802, 7200])
def test_a_rollout_is_given_up_only_after_the_startup_probe_gave_up(which, seconds):
    made = template(which, *LEAST, "--set", f"probes.startup.seconds={seconds}")
    spec = only(objects(made), "Deployment")["spec"]
    probe = spec["template"]["spec"]["containers"][0]["startupProbe"]
    budget = probe["failureThreshold"] * probe["periodSeconds"]
    assert budget >= seconds
    # Scheduling, images, volumes and init containers have what Kubernetes gives them by default.
    assert spec["progressDeadlineSeconds"] >= budget + probe["timeoutSeconds"] + 600


@pytest.mark.parametrize("which", HELMS)
def test_volumes_of_ones_own_hold_a_model_that_an_init_container_fetches(which):
    made = objects(template(which, "-f", DEPLOY / "values" / "own.yaml"))
    pod = only(made, "Deployment")["spec"]["template"]["spec"]
    given = yaml.safe_load((DEPLOY / "values" / "own.yaml").read_text())
    assert pod["initContainers"] == given["initContainers"]
    assert all(volume in pod["volumes"] for volume in given["extraVolumes"])
    mounts = pod["containers"][0]["volumeMounts"]
    assert all(mount in mounts for mount in given["extraVolumeMounts"])
    assert {"name": "weights", "mountPath": "/model", "readOnly": True} in mounts
    assert environment(made)["R2M_MODEL"] == "/model/skywork"
    # What fetches it has to reach its source.
    assert {} in only(made, "NetworkPolicy")["spec"]["egress"]


@pytest.mark.parametrize("which", HELMS)
@pytest.mark.parametrize(("kind", "source"), [("configMap", "name"), ("secret", "secretName")])
def test_a_ca_of_ones_own_is_where_every_client_in_the_server_looks(which, kind, source):
    given = f"caBundle.{kind}=corporate,caBundle.key=bundle.pem"
    made = objects(template(which, *LEAST, "--set", given))
    (volume,) = [
        one for one in only(made, "Deployment")["spec"]["template"]["spec"]["volumes"]
        if one["name"] == "ca-bundle"
    ]  # fmt: skip
    assert volume[kind][source] == "corporate"
    (item,) = volume[kind]["items"]
    assert item["key"] == "bundle.pem"
    (mount,) = [one for one in container(made)["volumeMounts"] if one["name"] == "ca-bundle"]
    file = f"{mount['mountPath']}/{item['path']}"
    assert {name: environment(made).get(name) for name in CA_VARIABLES} == dict.fromkeys(
        CA_VARIABLES, file
    )
    assert not set(CA_VARIABLES) & set(environment(objects(template(which, *LEAST))))


@pytest.mark.parametrize("which", HELMS)
def test_the_headless_service_names_every_pod_at_the_port_it_listens_on(which):
    made = objects(template(which, *LEAST, "--set", "service.grpcPort=443,tls.enabled=true"))
    headless = only(made, "Service", "r2m-headless")["spec"]
    assert headless["clusterIP"] == "None"
    listening = {one["name"]: one["containerPort"] for one in container(made)["ports"]}
    # Nothing translates a port here: a client calls the pod's own.
    for port in headless["ports"]:
        assert port["port"] == listening[port["targetPort"]]
    assert "ops" not in {port["name"] for port in headless["ports"]}  # else it is scraped twice
    data = only(made, "Secret", "r2m-tls")["data"]
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed")
    names = x509.load_pem_x509_certificate(
        base64.b64decode(data["tls.crt"])
    ).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert "r2m-headless.rewards.svc" in names.value.get_values_for_type(x509.DNSName)
