"""The shipped head says where it comes from, and its data are what it says."""

import json
import os
import pathlib
import sys

import pytest
from safetensors import safe_open

DEMO = pathlib.Path(__file__).parents[2] / "examples" / "demo"
DATA = os.environ.get("R2M_TEST_DATA")


@pytest.fixture
def metadata():
    with safe_open(DEMO / "head.safetensors", framework="pt") as file:
        assert file.get_tensor("head.weight").shape == (1, 576)
        assert file.get_tensor("head.bias").shape == (1,)
        return file.metadata()


def test_page_and_file_tell_the_same_provenance(metadata):
    page = (DEMO / "HEAD.md").read_text()
    assert metadata["data_licence"] == "Apache-2.0"
    assert f"{float(metadata['held_out_accuracy']):.3f}" in page
    assert f"{float(metadata['held_out_length_baseline']):.3f}" in page
    assert f"{metadata['train_pairs']} pairs to fit, {metadata['held_out_pairs']} held out" in page
    json.dumps(metadata)


@pytest.mark.skipif(DATA is None, reason="R2M_TEST_DATA does not name the folder of the data")
def test_the_split_of_the_real_data_is_the_one_that_is_stated(metadata, monkeypatch):
    monkeypatch.syspath_prepend(DEMO)
    sys.modules.pop("train_head", None)
    import train_head

    pairs, _ = train_head.load_pairs(pathlib.Path(DATA) / "pandalm_human_pairs.jsonl.gz")
    train, held_out = train_head.split_prompts([p.prompt for p in pairs], 0)
    assert not train & held_out
    counts = [sum(pair.prompt in side for pair in pairs) for side in (train, held_out)]
    assert counts == [int(metadata["train_pairs"]), int(metadata["held_out_pairs"])]
