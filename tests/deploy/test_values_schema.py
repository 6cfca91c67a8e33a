"""values.schema.json: what it takes, what it refuses, and that it has every setting."""

import copy
import json
import runpy
from datetime import date

import jsonschema
import pytest
import yaml
from support.charts import CHART, ROOT, VALUES, golden, only

from r2m_service.settings import Settings

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
GENERATE = runpy.run_path(str(ROOT / "helm" / "generate.py"))
KNOWN = SCHEMA["properties"]["settings"]["properties"]


def merged(given, base=DEFAULTS):
    """Values as Helm lays them over the chart's own."""
    made = copy.deepcopy(base)
    for name, value in given.items():
        both = isinstance(value, dict) and isinstance(made.get(name), dict)
        made[name] = merged(value, made[name]) if both else value
    return made


def complaints(given):
    checker = jsonschema.Draft7Validator(SCHEMA)
    return [error.json_path for error in checker.iter_errors(merged(given))]


def test_the_schema_is_one_and_takes_the_defaults():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert complaints({}) == []


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_it_takes_the_values_of_the_tests(values):
    assert complaints(yaml.safe_load(values.read_text())) == []


REFUSED = {
    "unknown at the top": ({"replica": 1}, "$"),
    "unknown below": ({"model": {"claim": "a"}}, "$.model"),
    "an unknown setting": ({"settings": {"max_len": 3}}, "$.settings"),
    "a setting of the chart's": ({"settings": {"state": "/x"}}, "$.settings"),
    "text for a number": ({"settings": {"keep_heads": "20"}}, "$.settings.keep_heads"),
    "a number below its bound": ({"settings": {"token_budget": 0}}, "$.settings.token_budget"),
    "zero where more is needed": ({"settings": {"reply_seconds": 0}}, "$.settings.reply_seconds"),
    "a fraction for a count": ({"settings": {"batch_items": 1.5}}, "$.settings.batch_items"),
    "an unknown dtype": ({"settings": {"dtype": "int4"}}, "$.settings.dtype"),
    "no drain": ({"settings": {"drain_seconds": None}}, "$.settings.drain_seconds"),
    "a way out of the volume": ({"model": {"folder": "../x"}}, "$.model.folder"),
    "an absolute folder": ({"model": {"folder": "/x"}}, "$.model.folder"),
    "a URL for a hub id": ({"model": {"hub": "https://x/y"}}, "$.model.hub"),
    "an unknown access mode": (
        {"registry": {"persistence": {"accessModes": ["ReadOnly"]}}},
        "$.registry.persistence.accessModes[0]",
    ),
    "credentials in a URL": (
        {"registry": {"blobs": {"url": "s3://key:secret@bucket"}}},
        "$.registry.blobs.url",
    ),
    "a size without a unit's form": (
        {"registry": {"persistence": {"size": "50 GB"}}},
        "$.registry.persistence.size",
    ),
    "two GPUs": ({"gpu": {"count": 2}}, "$.gpu.count"),
    "a peer that is all": ({"networkPolicy": {"clients": [{}]}}, "$.networkPolicy.clients[0]"),
    "another scaler": ({"autoscaling": {"kind": "vpa"}}, "$.autoscaling.kind"),
    "a budget of nobody": ({"pdb": {"maxUnavailable": 0}}, "$.pdb.maxUnavailable"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "place"), REFUSED.values(), ids=REFUSED.keys())
def test_it_refuses(given, place):
    assert complaints(given) == [place]


def test_it_has_every_setting_that_is_not_the_charts_own():
    owned = GENERATE["OWNED"]
    assert set(KNOWN) == set(Settings.model_fields) - owned
    for name, one in KNOWN.items():
        field = Settings.model_fields[name]
        assert one["description"] == field.description
        dated = isinstance(field.default, date)
        assert one.get("default") == (str(field.default) if dated else field.default)


def test_the_chart_repeats_one_default_and_rightly():
    # The grace period is counted from it, so it stands in the values.
    assert DEFAULTS["settings"] == {"drain_seconds": Settings.model_fields["drain_seconds"].default}


def test_every_value_is_in_the_schema_and_every_property_in_the_values():
    def compare(values, schema, place):
        properties = schema.get("properties")
        if properties is None or place == "settings":
            return
        assert set(values) == set(properties) - {"global"}, place
        for name, value in values.items():
            if isinstance(value, dict):
                compare(value, properties[name], name)

    compare(DEFAULTS, SCHEMA, "")


def test_a_volume_of_ones_own_has_a_name_that_the_chart_does_not_use():
    named = SCHEMA["properties"]["extraVolumes"]["items"]["properties"]["name"]["not"]["enum"]
    used = set()
    for values in VALUES:
        own = yaml.safe_load(values.read_text()).get("extraVolumes", [])
        pod = only(golden(values.stem), "Deployment")["spec"]["template"]["spec"]
        used |= {one["name"] for one in pod["volumes"]} - {one["name"] for one in own}
    assert used == set(named)


def test_the_chart_is_of_this_release():
    import tomllib

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]


def test_what_is_generated_is_up_to_date():
    wanted = GENERATE["wanted"]()
    assert CHART / "values.schema.json" in wanted
    for path, text in wanted.items():
        assert path.read_text() == text, f"{path.name} is out of date: run make docs"


def test_a_change_of_what_is_copied_is_seen_and_what_is_gone_goes(tmp_path, monkeypatch, capsys):
    main = GENERATE["main"]
    place = main.__globals__
    monkeypatch.setitem(place, "CHART", tmp_path / "helm" / "r2m")
    monkeypatch.setitem(place, "OBSERVABILITY", tmp_path)
    for name in ("r2m.json", "rules.yaml"):
        (tmp_path / name).write_text("{}")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["generate.py", *arguments])
        return main()

    assert run() == 0
    assert run("--check") == 0
    (tmp_path / "rules.yaml").write_text("groups: []")
    assert run("--check") == 1
    assert "files/rules/r2m.yaml" in capsys.readouterr().out
    (tmp_path / "r2m.json").unlink()
    assert run() == 0
    files = tmp_path / "helm" / "r2m" / "files"
    assert (files / "rules" / "r2m.yaml").read_text() == "groups: []"
    assert [path.name for path in files.rglob("*.*")] == ["r2m.yaml"]
