"""`r2m evaluate`, `r2m anchors put` and `r2m heads diff`: against a real server."""

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from support.rollouts import PROMPTS, RESPONSES, WIDTH_P, groups, states

from r2m_client import Client, Pair, Sample
from r2m_client.cli import main
from r2m_client.cli._preferences import Judged, accuracy, ties_score


@pytest.fixture
def r2m(server, monkeypatch):
    monkeypatch.setenv("R2M_URL", server.urls["http"])
    return lambda *args, **kwargs: CliRunner().invoke(main, args, **kwargs)


@pytest.fixture
def run(server, run_name):
    with Client(server.urls["grpc"], wire_dtype="float32", retries=0) as client:
        client.create_run(
            run_name, policy_hidden_size=WIDTH_P, method={"width": 16, "learning_rate": 1e-3}
        )
        for step in (1, 2):
            assert client.align(run_name, step=step, groups=groups(step)).accepted
        client.rollback(run_name, to=1)
        assert client.align(run_name, step=2, groups=groups(7)).accepted
    return run_name


def lines(count=6):
    return "".join(
        json.dumps({"prompt": PROMPTS[n % 3], "chosen": RESPONSES[n % 5], "rejected": f"No {n}."})
        + "\n"
        for n in range(count)
    )


@pytest.fixture
def held(tmp_path):
    found = {
        f"{n + 1}/{side}": states(100 + 2 * n + s)
        for n in range(6)
        for s, side in enumerate(("chosen", "rejected"))
    }
    save_file(found, tmp_path / "states.safetensors")
    return str(tmp_path / "states.safetensors")


def test_heads_are_judged_on_the_same_pairs(r2m, run, held):
    result = r2m(
        "evaluate", run, "--head", "0", "--head", "live", "--states", held, "--json", input=lines()
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [one["head"] for one in found["heads"]] == [0, 3]
    assert found["pairs"] == 6
    first, vanilla = found["heads"][0], found["vanilla"]
    assert first["accuracy"] == vanilla["accuracy"]  # version 0 ranks as the frozen model
    shown = r2m("evaluate", run, "--head", "0", "--states", held, input=lines()).stdout
    assert f"{first['accuracy']:.3f}" in shown
    assert "vanilla" in shown
    assert "6 pairs; better, worse and p: against head 0" in shown


def test_what_cannot_be_judged_is_told(r2m, run, held):
    long = lines(1).replace("No 0.", "No. " * 900)
    some = r2m("evaluate", run, "--states", held, input=long + lines(2)[len(lines(1)) :])
    assert some.exit_code == 1
    assert "1/rejected: text_too_long" in some.stderr
    assert "1 of 2 rows left out" in some.stderr
    for text, words in (
        ("", "no pairs"),
        ("{}", "line 1 has no 'chosen'"),
        ('{"chosen": "a", "rejected": "b"}', "line 1 has no string 'prompt'"),
        ('{"prompt": "a", "chosen": 1, "rejected": "b"}', "is a string or a list of turns"),
        (lines(7), "the states hold no tensor 7/chosen"),
    ):
        result = r2m("evaluate", run, "--states", held, input=text)
        assert result.exit_code == 1
        assert words in result.stderr
        assert len([one for one in result.stderr.splitlines() if one.startswith("Error")]) == 1
    assert "cannot read" in r2m("evaluate", run, "--states", "/nowhere", input=lines()).stderr


def test_conversations_are_judged_as_their_texts_are(r2m, run, held):
    def turns(line):
        return {
            "prompt": [{"role": "user", "content": line["prompt"]}],
            **{
                side: [{"role": "assistant", "content": line[side]}]
                for side in ("chosen", "rejected")
            },
        }

    talks = "".join(json.dumps(turns(json.loads(line))) + "\n" for line in lines().splitlines())
    asked = ("evaluate", run, "--states", held, "--json")
    told = r2m(*asked, input=talks)
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout) == json.loads(r2m(*asked, input=lines()).stdout)


def test_a_policy_run_without_states_is_refused_before_any_call(r2m, run):
    result = r2m("evaluate", run, input=lines(50))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "feedback policy" in line
    assert "--states FILE" in line
    assert "--vanilla" in line


@pytest.fixture
def texts_run(server, run_name):
    """A run that reads texts alone, whose live head has learnt."""
    with Client(server.urls["http"], retries=0) as client:
        client.create_run(
            run_name, feedback="backbone", method={"width": 16, "learning_rate": 1e-3}
        )
        plain = [replace_states(group) for group in groups(1)]
        assert client.align(run_name, step=1, groups=plain).accepted
    return run_name


def replace_states(group):
    samples = [replace(one, hidden_states=None) for one in group.samples]
    return replace(group, samples=samples)


BENCH = [
    {"id": 7, "prompt": PROMPTS[0], "chosen": RESPONSES[0], "rejected": "No.", "subset": "easy",
     "chosen_model": "a", "rejected_model": "b"},
    {"id": 7, "prompt": PROMPTS[1], "chosen": RESPONSES[1], "rejected": "Never.", "subset": "hard",
     "chosen_model": "a"},
    {"id": 9, "prompt": PROMPTS[2], "chosen": "Same.", "rejected": "Same.", "subset": "hard"},
]  # fmt: skip
"""RewardBench's form; two rows share an id, one is a tie."""

BENCH2 = [
    {"id": f"{n}", "prompt": PROMPTS[n % 3], "chosen": [RESPONSES[n]],
     "rejected": [RESPONSES[(n + k) % 5] for k in (1, 2, 3)], "num_correct": 1, "subset": "Math"}
    for n in range(5)
] + [
    {"id": "5", "prompt": PROMPTS[0], "chosen": ["Same."], "rejected": ["Same.", "Same."],
     "num_correct": 1, "subset": "Math"},
    {"id": "ref:1", "prompt": PROMPTS[0], "chosen": ["One."], "rejected": ["Two.", "Ten."],
     "num_correct": 1, "subset": "Ties"},
    {"id": "tied:1", "prompt": PROMPTS[0], "chosen": ["One.", "1", "Ein."],
     "rejected": ["Two.", "Ten."], "num_correct": 3, "subset": "Ties"},
]  # fmt: skip
"""RewardBench 2's form, its subset Ties among it."""


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def listed(side):
    return side if isinstance(side, list) else [side]


def rewards_of(client, rows, **by):
    """Rewards of every row's completions from `score`, one call a completion."""

    def reward(prompt, response):
        (score,) = client.score([Sample("a", prompt, response)], **by).scores
        return score.vanilla_reward if not by else score.reward

    return [
        tuple([reward(row["prompt"], one) for one in listed(row[side])]
              for side in ("chosen", "rejected"))
        for row in rows
    ]  # fmt: skip


def shares(rewards):
    """RewardBench 2's rule for each row, from its definition."""
    for chosen, rejected in rewards:
        if len(chosen) > 1:
            yield float(min(chosen) > max(rejected))
        else:
            best = max(chosen + rejected)
            yield (chosen[0] == best) / (chosen + rejected).count(best)


@pytest.mark.parametrize("rows", [BENCH, BENCH2], ids=["1", "2"])
@pytest.mark.parametrize("batch", ["2", "64"])
def test_rewardbench_rows_are_judged_by_the_reward_model(server, r2m, rows, batch):
    result = r2m(
        "evaluate", "--vanilla", "--by", "subset", "--json", "--batch", batch, input=jsonl(rows)
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    with Client(server.urls["http"]) as client:
        credits = list(shares(rewards_of(client, rows)))
    assert found["vanilla"]["accuracy"] == pytest.approx(sum(credits) / len(rows))
    assert (found["run"], found["pairs"], found["heads"]) == (None, len(rows), [])
    by_subset = defaultdict(list)
    for row, credit in zip(rows, credits, strict=True):
        by_subset[row["subset"]].append(credit)
    assert set(found["by"]["subset"]) == set(by_subset)
    for value, some in by_subset.items():
        part = found["by"]["subset"][value]
        assert part["pairs"] == len(some)
        assert part["vanilla"]["accuracy"] == pytest.approx(sum(some) / len(some))
        assert ("ties_score" in part["vanilla"]) == (value == "Ties")


@pytest.mark.parametrize("rows", [BENCH, BENCH2], ids=["1", "2"])
def test_rewardbench_rows_are_judged_by_heads_of_a_run(server, r2m, texts_run, rows):
    asked = ("evaluate", texts_run, "--head", "0", "--head", "live", "--json")
    result = r2m(*asked, "--batch", "3", input=jsonl(rows))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [one["head"] for one in found["heads"]] == [0, 1]
    with Client(server.urls["http"]) as client:
        for one in (*found["heads"], found["vanilla"]):
            by = {} if one["head"] is None else {"run": texts_run, "head": one["head"]}
            credits = list(shares(rewards_of(client, rows, **by)))
            assert one["accuracy"] == pytest.approx(sum(credits) / len(rows))
        # Judging leaves nothing in the run but these scores of ours.
        before = client.run(texts_run).usage
        assert r2m(*asked, input=jsonl(rows)).exit_code == 0
        assert client.run(texts_run).usage == before


def test_margins_are_differences_of_rewards(server, r2m, texts_run):
    with Client(server.urls["grpc"]) as client:
        pairs = [
            Pair(f"p{n}", Sample(f"a{n}", "Hi", RESPONSES[n]), Sample(f"b{n}", "Hi", response))
            for n, response in enumerate(["No.", "No. " * 900, "Never."])
        ]
        found = client.evaluate(texts_run, pairs, heads=[1, 0], margins=True)
        for one in (*found.heads, found.vanilla):
            by = {} if one.head is None else {"run": texts_run, "head": one.head}
            rows = [{"prompt": "Hi", "chosen": RESPONSES[n], "rejected": r}
                    for n, r in ((0, "No."), (2, "Never."))]  # fmt: skip
            expected = [chosen[0] - rejected[0] for chosen, rejected in
                        rewards_of(client, rows, **by)]  # fmt: skip
            assert one.margins == pytest.approx(expected, abs=1e-6)


def test_a_table_by_subset(r2m):
    shown = r2m("evaluate", "--vanilla", "--by", "subset", input=jsonl(BENCH2))
    assert shown.exit_code == 0, shown.stderr
    head, math, ties, everything, score, rows = shown.stdout.splitlines()
    assert head.split()[:4] == ["SUBSET", "ROWS", "HEAD", "ACCURACY"]
    assert [line.split()[:3] for line in (math, ties, everything)] == [
        ["Math", "6", "vanilla"], ["Ties", "2", "vanilla"], ["all", "8", "vanilla"]
    ]  # fmt: skip
    assert score.startswith("RewardBench 2's score for Ties: ")
    assert rows == "8 rows"


def test_other_keys_are_ignored_and_counted(r2m, server, texts_run):
    result = r2m("evaluate", "--vanilla", input=jsonl(BENCH))
    assert "ignored keys: subset (3 rows), chosen_model (2 rows), rejected_model (1 rows)" in (
        result.stderr
    )
    put = r2m("anchors", "put", texts_run, input=jsonl([BENCH[0]]))
    assert put.exit_code == 0, put.stderr
    assert "ignored keys: subset (1 rows)" in put.stderr
    several = r2m("anchors", "put", texts_run, input=jsonl(BENCH2[:1]))
    assert "line 1: a pair has one chosen and one rejected completion" in several.stderr


def test_prompts_and_completions_are_texts_or_turns(r2m):
    user = [{"role": "user", "content": "Hi"}]
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    forms = [
        {"prompt": "Hi", "chosen": "chosen", "rejected": "rejected"},
        {"prompt": user, "chosen": "chosen", "rejected": "rejected"},
        {"prompt": "Hi", **sides},
        {"prompt": user, **sides},
        {"prompt": "Hi", **{side: user + turns for side, turns in sides.items()}},
        {"prompt": user, **{side: user + turns for side, turns in sides.items()}},
        {side: user + turns for side, turns in sides.items()},
        {"prompt": user, **{side: [turns] for side, turns in sides.items()}},
    ]
    # Where each row's two texts are those of the first, every reward is one of two numbers.
    found = [
        json.loads(r2m("evaluate", "--vanilla", "--json", input=jsonl([form])).stdout)
        for form in forms
    ]
    assert all(one == found[0] for one in found)
    crossed = [{**form, "rejected": forms[0]["chosen"]} for form in forms[:2]]
    crossed += [{**forms[3], "rejected": forms[3]["chosen"]}]
    for row in crossed:  # the same text in two forms is a tie
        answer = json.loads(r2m("evaluate", "--vanilla", "--json", input=jsonl([row])).stdout)
        assert answer["vanilla"]["ties"] == 1


def test_what_evaluate_cannot_take(r2m):
    for asked, text, words in (
        ((), "", "name a RUN, or judge the reward model itself with --vanilla"),
        (("--vanilla", "--head", "0"), "", "--vanilla takes FILE alone"),
        (("--vanilla", "--by", "subset"), lines(1), "line 1 has no key 'subset'"),
        (("--vanilla", "/nowhere"), "", "cannot read /nowhere"),
        (("--vanilla",), jsonl([{"prompt": "a", "chosen": [], "rejected": ["b"]}]), "empty list"),
    ):
        result = r2m("evaluate", *asked, input=text)
        assert result.exit_code > 0
        assert words in result.stderr


def test_the_score_for_ties_is_that_of_rewardbench_2():
    """The number comes from `process_single_model` of allenai/reward-bench at 05a9005."""
    rows = [
        Judged("ref:1", [3.0], [1.0, 2.0]), Judged("tied:1", [2.5, 2.25, 2.75], [1.0, 0.5]),
        Judged("ref:2", [1.0], [1.5, 0.0]), Judged("tied:2", [0.5, 2.0], [1.0, 0.25]),
        Judged("ref:3", [2.0], [0.0]), Judged("tied:3", [1.0, 1.0], [0.5]),
        Judged("tied:4", [4.0, 3.0], [1.0]),
    ]  # fmt: skip
    assert ties_score(rows) == pytest.approx(0.6946384416473769, abs=1e-12)
    assert ties_score(rows[:1]) is None
    judged = accuracy(rows, None, None)
    assert (judged.correct, judged.ties, judged.accuracy) == (5, 0, 5 / 7)


def test_texts_in_every_form_are_scored_with_their_states(r2m, run, tmp_path):
    rows = [
        {"prompt": PROMPTS[0], "response": RESPONSES[0]},
        {"messages": [{"role": "user", "content": PROMPTS[0]},
                      {"role": "assistant", "content": RESPONSES[0]}]},
        {"token_ids": [7] * 900, "finish_reason": "length"},
    ]  # fmt: skip
    save_file({str(n + 1): states(5) for n in range(3)}, tmp_path / "s.safetensors")
    result = r2m(
        "score", "--run", run, "--states", str(tmp_path / "s.safetensors"),
        input="\n".join(map(json.dumps, rows)),
    )  # fmt: skip
    assert result.exit_code == 1
    pair, talk, long = map(json.loads, result.stdout.splitlines())
    assert pair["reward"] == pytest.approx(talk["reward"], abs=1e-6)
    assert (pair["head"], pair["tokens"]) == (3, talk["tokens"])
    assert pair["states"] == len(states(5))
    assert long["error"]["code"] == "text_too_long"


def test_heads_diff(r2m, run):
    result = r2m("heads", "diff", run, "0", "2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("2 comes from 0, 2 updates later\n")
    assert "from 0" in next(one for one in result.stdout.splitlines() if one.startswith("w_o"))
    found = json.loads(r2m("heads", "diff", run, "2", "live", "--json").stdout)
    assert found["lineage"] == "both come from 1: 2 1 update later, 3 1 update later"
    moved = {one["tensor"]: one for one in found["weights"]}
    assert set(moved) == {"w_q", "w_k", "w_v", "w_o", "head.weight"}
    assert 0 < moved["w_q"]["moved"] < 0.1
    assert moved["w_q"]["cosine"] > 0.99
    assert found["facts"]["branch"] == ["main", "b1"]
    same = json.loads(r2m("heads", "diff", run, "1", "1", "--json").stdout)
    assert (same["lineage"], same["facts"]) == ("the same version", {})
    assert all(one["moved"] == 0 for one in same["weights"])


def test_the_numbers_of_a_diff_are_those_of_numpy(server, r2m, run):
    from safetensors.numpy import load

    with Client(server.urls["http"]) as client:
        a, b = (load(client.head_weights(run, n)) for n in (1, 2))
    found = json.loads(r2m("heads", "diff", run, "1", "2", "--json").stdout)
    for one in found["weights"]:
        x, y = (w[one["tensor"]].ravel().astype(np.float64) for w in (a, b))
        assert one["moved"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
