"""What the golden files hold; they are what Helm makes, so no Helm is needed here."""

import re

import kubernetes_validate
import pytest
from support.charts import EXTENSIONS, VALUES, container, environment, golden, only

from r2m_service.settings import Settings
from r2m_service.sources import ELSEWHERE, variable

NAMES = [path.stem for path in VALUES]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", ["1.27", "1.32"])
def test_the_clusters_schemas_take_every_object(name, version):
    found = golden(name)
    assert found
    for one in found:
        if one["kind"] not in EXTENSIONS:
            kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_a_setting(name):
    pods = [only(golden(name), "Deployment")["spec"]["template"]["spec"]]
    pods.append(only(golden(name), "Pod")["spec"])
    given = {one["name"] for pod in pods for one in pod["containers"][0]["env"]}
    known = {variable(one) for one in Settings.model_fields} | ELSEWHERE
    assert {one for one in given if one.startswith("R2M_")} <= known


@pytest.mark.parametrize("name", NAMES)
def test_pods_run_without_root_without_rights_and_without_a_writable_image(name):
    pods = [only(golden(name), "Deployment")["spec"]["template"]["spec"]]
    pods.append(only(golden(name), "Pod")["spec"])
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for one in pod["containers"]:
            assert one["securityContext"]["readOnlyRootFilesystem"] is True
            assert one["securityContext"]["allowPrivilegeEscalation"] is False
            assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", NAMES)
def test_the_pod_lives_longer_than_its_drain(name):
    pod = only(golden(name), "Deployment")["spec"]["template"]["spec"]
    wait = int(container(golden(name))["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = float(environment(golden(name))["R2M_DRAIN_SECONDS"])
    # gRPC has its drain, and HTTP what is left has one after it.
    assert pod["terminationGracePeriodSeconds"] > wait + 2 * drain


@pytest.mark.parametrize("name", NAMES)
def test_services_and_policies_find_the_pods_and_not_the_test(name):
    deployment = only(golden(name), "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    other = only(golden(name), "Pod")["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    for one in golden(name):
        if one["kind"] == "Service":
            selectors.append(one["spec"]["selector"])
        if one["kind"] == "NetworkPolicy":
            selectors.append(one["spec"]["podSelector"]["matchLabels"])
        if one["kind"] == "PodDisruptionBudget":
            selectors.append(one["spec"]["selector"]["matchLabels"])
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= other.items()


@pytest.mark.parametrize("name", NAMES)
def test_every_mount_has_its_volume_and_every_port_a_name(name):
    pod = only(golden(name), "Deployment")["spec"]["template"]["spec"]
    server = container(golden(name))
    assert {one["name"] for one in server["volumeMounts"]} == {
        one["name"] for one in pod["volumes"]
    }
    ports = {one["name"] for one in server["ports"]}
    asked = {server[probe]["httpGet"]["port"]
             for probe in ("startupProbe", "livenessProbe", "readinessProbe")}  # fmt: skip
    for one in golden(name):
        if one["kind"] == "Service":
            asked |= {port["targetPort"] for port in one["spec"]["ports"]}
    assert asked <= ports


def test_one_server_an_sqlite_file():
    least = only(golden("least"), "Deployment")["spec"]
    assert (least["replicas"], least["strategy"]["type"]) == (1, "Recreate")
    assert only(golden("least"), "PersistentVolumeClaim")["metadata"]["annotations"] == {
        "helm.sh/resource-policy": "keep"
    }
    assert only(golden("shared"), "Deployment")["spec"]["strategy"]["type"] == "RollingUpdate"


def test_a_gpu_has_its_resource_its_toleration_and_its_image():
    pod = only(golden("gpu_hub"), "Deployment")["spec"]["template"]["spec"]
    server = container(golden("gpu_hub"))
    assert server["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "1"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert set(pod["nodeSelector"]) == {"disk", "nvidia.com/gpu.product"}
    assert "-cuda@sha256:" in server["image"]
    assert environment(golden("gpu_hub"))["R2M_DEVICE"] == "cuda"
    assert only(golden("gpu_hub"), "PersistentVolumeClaim", "r2m-cache")


def test_settings_of_every_type_arrive_as_they_were_written():
    given = environment(golden("gpu_hub"))
    wanted = {
        "R2M_DRAIN_SECONDS": "40.5", "R2M_CACHE_BYTES": "17179869184", "R2M_DTYPE": "bfloat16",
        "R2M_COMPILE": "true", "R2M_TRUST_REMOTE_CODE": "false", "R2M_MAX_LENGTH": "4096",
    }  # fmt: skip
    assert wanted.items() <= given.items()


def test_the_server_sees_hashes_of_keys_alone():
    volumes = only(golden("least"), "Deployment")["spec"]["template"]["spec"]["volumes"]
    (keys,) = [one["secret"] for one in volumes if one["name"] == "keys"]
    assert [item["key"] for item in keys["items"]] == ["keys.json"]


def test_nobody_gets_in_who_is_not_named_and_nothing_out_that_need_not():
    policy = only(golden("least"), "NetworkPolicy")["spec"]
    assert all(rule["from"] for rule in policy["ingress"])
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [53, 53]
    # A hub may be anywhere: all is open until values say where it is.
    assert {} in only(golden("gpu_hub"), "NetworkPolicy")["spec"]["egress"]
    assert {} not in only(golden("shared"), "NetworkPolicy")["spec"]["egress"]


def test_ops_stays_inside_where_the_service_is_seen_outside():
    outside = only(golden("keda"), "Service", "r2m")["spec"]
    assert {port["name"] for port in outside["ports"]} == {"http", "grpc"}
    inside = only(golden("keda"), "Service", "r2m-ops")["spec"]
    assert inside["type"] == "ClusterIP"


def test_it_scales_on_the_time_in_line():
    (metric,) = only(golden("shared"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "250m"}
    (trigger,) = only(golden("keda"), "ScaledObject")["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    assert trigger["metadata"]["threshold"] == "0.5"
    assert re.search(
        r'r2m_request_stage_seconds_bucket\{namespace="rewards",.*stage="queue"', query
    )
    for name in ("shared", "keda"):
        assert "replicas" not in only(golden(name), "Deployment")["spec"]


def test_the_monitor_reads_ops_under_the_name_that_the_rules_know():
    (endpoint,) = only(golden("shared"), "ServiceMonitor")["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("ops", "/metrics")
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "r2m"}]
