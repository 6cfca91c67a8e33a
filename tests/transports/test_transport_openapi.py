from __future__ import annotations

import re
from typing import Any

import pytest
from transport_fakes import FakeApplication
from transport_wires import serving

from r2m_service.application import contract
from r2m_service.application.parsing import parse
from r2m_service.transports.http.app import build_app
from r2m_service.transports.http.examples import ANSWERS, REQUESTS

ROUTES = {
    "/v1/score": {"post"},
    "/v1/runs": {"get", "post"},
    "/v1/runs/{run}": {"get", "delete", "patch"},
    "/v1/runs/{run}/changes": {"get"},
    "/v1/runs/{run}/evaluate": {"post"},
    "/v1/runs/{run}/anchors": {"get", "put"},
    "/v1/runs/{run}/labels": {"post"},
    "/v1/runs/{run}/samples": {"get"},
    "/v1/runs/{run}/score": {"post"},
    "/v1/runs/{run}/align": {"post"},
    "/v1/runs/{run}/align/{ticket}": {"post"},
    "/v1/runs/{run}/heads": {"get"},
    "/v1/runs/{run}/heads/{head}": {"get"},
    "/v1/runs/{run}/heads/{head}/weights": {"get"},
    "/v1/runs/{run}/aliases/{alias}": {"put"},
    "/v1/runs/{run}/rollback": {"post"},
    "/v1/server": {"get"},
    "/livez": {"get"},
    "/readyz": {"get"},
}
TRAINERS = {
    "post": (
        "get_reward", "slime", "classify", "v1/embeddings", "v1/score/evaluation", "verify",
        "seed_session", "aggregate_metrics",
    ),
    "get": ("reverify_mode", "v1/models", "health"),
}  # fmt: skip
ROUTES |= {
    f"{at}/{path}": {method}
    for at in ("", "/runs/{run}")
    for method, paths in TRAINERS.items()
    for path in paths
}
ROUTES |= {f"/ng-rollout/{{rollout}}/{path}": {"post"} for path in ("verify", "seed_session")}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return build_app(FakeApplication(), max_body_bytes=1).openapi()


def operations(document):
    for path, entries in document["paths"].items():
        for method, operation in entries.items():
            yield path, method, operation


def test_all_routes_are_there(document):
    assert document["openapi"].startswith("3.1")
    assert {path: set(one) for path, one in document["paths"].items()} == ROUTES


def test_operations_are_described(document):
    ids = [one["operationId"] for _, _, one in operations(document)]
    assert len(set(ids)) == len(ids)
    for path, method, one in operations(document):
        assert one["summary"]
        named = {given["name"] for given in one.get("parameters", []) if given["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))
        assert ("requestBody" in one) == (method in ("post", "put", "patch"))
        for status, answer in one["responses"].items():
            assert answer["description"]
            if status.startswith(("4", "5")) or status == "default":
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}
        # The framework's own; a trainer's call fails as a whole where one reward is no number.
        assert "422" not in one["responses"] or one["tags"] == ["trainers"]
        success = [status for status in one["responses"] if status.startswith("2")]
        assert success


def test_every_reference_leads_somewhere(document):
    schemas = document["components"]["schemas"]

    def walk(value):
        if isinstance(value, dict):
            if "$ref" in value:
                assert value["$ref"].removeprefix("#/components/schemas/") in schemas
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(document)
    assert "HTTPValidationError" not in schemas
    for name in REQUESTS:
        assert schemas[name]["additionalProperties"] is False


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_examples_are_valid_requests(name):
    message = parse(getattr(contract, name), REQUESTS[name])
    for one in getattr(message, "samples", []):
        if getattr(one, "feedback", None):
            import base64

            assert len(base64.b64decode(one.feedback.data)) == 16


def test_tensor_routes_name_both_media_types(document):
    for path, method, one in operations(document):
        media = set(one.get("requestBody", {}).get("content", {}))
        if path.endswith(("/score", "/align", "/evaluate")):
            assert media == {"application/json", "application/x-safetensors"}, path
        elif method in ("post", "put", "patch"):
            assert media == {"application/json"}


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_examples_are_valid_answers(name, document):
    model = getattr(contract, name)
    assert model.model_validate(ANSWERS[name]).model_dump(exclude_none=True) == ANSWERS[name]
    shown = [
        one
        for _, _, operation in operations(document)
        for one in operation["responses"].values()
        if one.get("content", {}).get("application/json", {}).get("example") == ANSWERS[name]
    ]
    assert shown


async def test_it_is_served():
    async with serving() as wires:
        got = await wires.http.get("/openapi.json")
        assert got.status_code == 200
        assert got.json()["paths"].keys() == ROUTES.keys()
        assert not re.search(r"https?://(?!json-schema)", got.text)
