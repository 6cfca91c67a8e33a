"""The real-text lab on made-up text and a random model: splits, the cache, what it refuses."""

import gzip
import json
import os
import subprocess
import sys

import pytest
import torch
from support.models import TEMPLATE, save_reward_model

from lab.real import __main__ as command
from lab.real import data, embed
from lab.real.arms import ARMS, SWEPT
from lab.real.data import Text
from lab.real.study import Measured, Study, fit
from lab.real.tables import main_table, questions_table, rates_table

WORDS = ["sea", "bread", "Paris", "dog", "quick", "lazy", "blue", "wide", "flour", "salt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("data")
    groups = [
        {
            "prompt": f"What is {n}?",
            "responses": [
                # What is liked says `Paris`: something that a head can learn.
                {"text": f"{'Paris ' * k}{WORDS[(n + k) % 10]} {k}", "gold": k / 5}
                for k in range(5)
            ],
        }
        for n in range(18)
    ]
    groups.append({"prompt": "too long", "responses": [{"text": "x" * 2000, "gold": 0.1}] * 5})
    groups.append(
        {"prompt": "no order", "responses": [{"text": f"t{k}", "gold": 0.5} for k in range(5)]}
    )
    pairs = [
        {"prompt": f"Why {n}?", "a": f"Paris {n}", "b": f"dog {n}", "votes": votes}
        for n, votes in enumerate([[1, 1, 2], [2, 2, 1], [0, 0, 1], [1, 2, 0], [1, 1, 1]])
    ]
    pairs.append({"prompt": "What is 3?", "a": "a", "b": "b", "votes": [1, 1, 1]})
    pairs.append({"prompt": "flag", "a": True, "b": "b", "votes": [1, 1, 1]})
    for name, rows in ((data.GROUPS_FILE, groups), (data.PAIRS_FILE, pairs)):
        with gzip.open(made / name, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return made


def test_what_is_kept_of_the_data(folder):
    groups = data.read_groups(folder / data.GROUPS_FILE, 100)
    assert len(groups) == 18
    assert {len(one.texts) for one in groups} == {data.K}
    pairs = data.read_pairs(folder / data.PAIRS_FILE, 100, but=["What is 3?"])
    told = [(one.better.response, one.worse.response) for one in pairs]
    assert told == [("Paris 0", "dog 0"), ("dog 1", "Paris 1"), ("Paris 4", "dog 4")]
    assert len(data.read_groups(folder / data.GROUPS_FILE, 7)) == 7


def test_no_prompt_is_in_two_parts_of_a_split(folder):
    groups = data.read_groups(folder / data.GROUPS_FILE, 100)
    twice = [*groups, *groups]
    for seed in range(5):
        split = data.split(twice, seed)
        parts = [
            {twice[place].texts[0].prompt for place in part}
            for part in (split.fit, split.align, split.held_out)
        ]
        assert all(parts)
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert sorted([*split.fit, *split.align, *split.held_out]) == list(range(len(twice)))
    assert data.split(groups, 1) == data.split(groups, 1) != data.split(groups, 2)


def test_a_head_is_fitted_as_by_hand():
    torch.manual_seed(0)
    truth = torch.tensor([2.0, -1.0, 0.0])
    x = torch.randn(4000, 3)
    x = torch.where((torch.rand(4000) < torch.sigmoid(x @ truth))[:, None], x, -x)
    found = fit(x)
    cosine = torch.nn.functional.cosine_similarity(found, truth, dim=0)
    assert cosine > 0.99


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("lab-models")
    return [save_reward_model(base / str(n), seed=n, template=TEMPLATE) for n in range(2)]


def test_the_cache_goes_by_the_model_and_the_texts(models, tmp_path):
    texts = [Text("a", "Paris"), Text("b", "the sea")]

    def key(texts, model, reader="policy"):
        return embed._work(texts, reader, model, None, tmp_path).file

    assert key(texts, models[0]) == key(list(texts), models[0])
    keys = {
        key(texts, models[0]), key(texts, models[1]), key(texts[:1], models[0]),
        key(texts, models[0], "reward model"),
    }  # fmt: skip
    assert len(keys) == 4


def test_labels_teach_what_can_be_learnt(folder, models, tmp_path):
    """End to end: of all arms, on one split; states of the two readers differ."""
    groups = data.read_groups(folder / data.GROUPS_FILE, 18)
    pairs = data.read_pairs(folder / data.PAIRS_FILE, 10)
    texts = [t for g in groups for t in g.texts] + [t for p in pairs for t in (p.better, p.worse)]
    work = [
        embed._work(part, reader, models[0], None, tmp_path)
        for reader in ("reward model", "policy")
        for part in _chunks(
            sorted(set(texts), key=lambda t: (len(t.prompt) + len(t.response), str(t)))
        )
    ]
    for one in work:
        embed._make(one)
    found = embed.embed(texts, models[0], None, tmp_path, 1)
    assert set(found) == set(texts)
    one = found[texts[0]]
    assert one.own_SR.shape != one.policy_SP.shape  # the template's own tokens
    study = Study(groups, pairs, found, data.split(groups, 0), 0)
    study.steps, study.groups_a_step = 6, 4
    before = study.vanilla()
    for arm in (*ARMS, SWEPT[-1]):
        measured = study.run(arm)
        assert 0 <= measured.held_out <= 1
        assert 0 <= measured.people <= 1
        if arm.name == "paper":
            # At its own learning rate six steps are nothing.
            assert measured.held_out == before.held_out
            assert measured.rank_correlation > 0.999
        if arm.reward == "learner" and "labelled" not in arm.name:
            assert measured.accepted <= 6


def _chunks(texts):
    return [texts[start : start + embed.CHUNK] for start in range(0, len(texts), embed.CHUNK)]


def test_without_the_data_it_says_where_it_looked(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv(data.VARIABLE, raising=False)
    assert command.main([]) == 2
    assert data.VARIABLE in capsys.readouterr().err
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    assert command.main([]) == 2
    assert data.GROUPS_FILE in capsys.readouterr().err
    assert command.main(["--splits", "3"]) == 2
    assert "3 splits show nothing" in capsys.readouterr().err
    assert command.main(["--steps", "1"]) == 2
    assert "1 aligns show nothing" in capsys.readouterr().err
    for flag, what in (("groups", "groups of an align"), ("prompts",) * 2, ("pairs",) * 2):
        assert command.main([f"--{flag}", "0"]) == 2
        assert f"0 {what} show nothing" in capsys.readouterr().err
    assert command.main(["--model", "/nope"]) == 2
    assert "--model /nope: there is no such" in capsys.readouterr().err
    assert command.main(["--out", "/proc/x"]) == 2
    assert "--out /proc/x cannot be written to" in capsys.readouterr().err


def test_few_splits_have_no_numbers():
    found = {name: {n: Measured(0.5, 0.5) for n in range(3)} for name in ("vanilla", "labelled-25")}
    found[SWEPT[0].name] = found["labelled-25"]
    made = main_table(found, ARMS), questions_table(found), rates_table(found)
    text = "\n".join(table.text() for table in made)
    assert "too few" in text
    assert "±" not in text.split("After")[0]


def test_the_whole_of_it(folder, models, tmp_path):
    """As `make lab-real`: processes of its own, a table, the numbers."""
    done = subprocess.run(
        [sys.executable, "-m", "lab.real", "--model", models[0], "--prompts", "18", "--pairs", "3",
         "--splits", "5", "--steps", "20", "--groups", "4", "--workers", "2",
         "--out", tmp_path / "out", "--cache", tmp_path / "cache"],
        capture_output=True, text=True, timeout=110,
        env=os.environ | {"PYTHONPATH": "benchmarks", data.VARIABLE: str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "vanilla, before" in done.stdout
    assert "labelled" in done.stdout
    kept = json.loads((tmp_path / "out" / "real.json").read_text())
    assert {len(splits) for splits in kept["arms"].values()} == {5}
    rates = next(table for table in kept["tables"] if table["name"] == "real-rates")
    assert [row[:2] for row in rates["rows"]][::4] == [
        ["`labelled-25`", "1e-05"],
        ["`backbone-25`", "1e-05"],
        ["`none-25`", "1e-05"],
    ]
    assert list((tmp_path / "cache").glob("*.safetensors"))


def test_too_little_data_is_said(folder, models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(data.VARIABLE, str(folder))
    assert command.main(["--model", str(models[0]), "--cache", str(tmp_path)]) == 2
    assert "18 prompts have 4 short responses each" in capsys.readouterr().err


def test_a_reward_model_that_is_a_coin_shows_nothing(folder, models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(data.VARIABLE, str(folder))
    coin = {n: Measured(0.5 + 0.02 * (-1) ** n, 0.5) for n in range(6)}
    monkeypatch.setattr(command, "material", lambda *given: None)
    monkeypatch.setattr(command, "run_all", lambda *given: {"vanilla": coin})
    given = ["--model", str(models[0]), "--out", str(tmp_path), "--cache", str(tmp_path)]
    assert command.main(given) == 1
    said = capsys.readouterr().out
    assert "shows nothing" in said
    assert "50.0 ± 2.3 %" in said
    assert not (tmp_path / "real.json").exists()
