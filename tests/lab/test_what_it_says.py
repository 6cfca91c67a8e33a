"""Intervals, refusals, tables: what may be said of runs, on runs made by hand."""

import json

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from support.lab_runs import STEPS, fine, fooled, made

from bench.report import Table
from lab import __main__ as command
from lab import evidence, jobs, shadows, study, tuning
from lab.arms import FROZEN, LABELLED, PAPER, RATES, SETS, at_rate
from lab.outcomes import outcome, outcomes, pair_accuracy, why_it_shows_nothing
from lab.questions import QUESTIONS, TUNED_QUESTIONS, WEAK_QUESTIONS, questions_table
from lab.rlhf import GROUPS, K
from lab.stats import TooFewError, mean_of, paired
from lab.study import Plan, tables_of
from lab.tables import cell, main_table


def test_intervals_are_students():
    values = [0.3, 1.2, -0.4, 0.9, 2.2, 0.1]
    mean = mean_of(values)
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean.low, mean.high) == pytest.approx((low, high))
    assert mean.says == "open"
    assert mean.positive == 5
    assert paired([v + 3 for v in values], [0.0] * 6).says == "better"
    assert paired([0.0] * 6, [v + 3 for v in values]).says == "worse"


@pytest.mark.parametrize("values", [[], [1.0] * 4])
def test_too_few_have_no_interval(values):
    with pytest.raises(TooFewError, match="at least 5"):
        mean_of(values)


def test_what_is_not_a_number_has_none():
    with pytest.raises(ValueError, match="finite"):
        mean_of([1.0, 2.0, 3.0, 4.0, float("nan")])


def test_an_outcome_by_hand():
    run = made(gold=lambda x: 10 * x, reward=lambda x: x)
    found = outcome(run)
    assert found.peak == pytest.approx(found.final, abs=0.3)
    # KL is 20 x; at KL 6 the gold is 3.
    assert found.at_kl[6.0] == pytest.approx(3.0, abs=0.4)
    assert outcome(made(gold=lambda x: x, reward=lambda x: x, kl=np.ones(STEPS))).at_kl[6.0] is None


def test_pair_accuracy_counts_pairs_of_one_group():
    draw = np.random.default_rng(0)
    gold = draw.integers(0, 3, (4, GROUPS * K)).astype(float)
    reward = draw.integers(0, 3, (4, GROUPS * K)).astype(float)
    right = told = 0.0
    for r_row, g_row in zip(reward, gold, strict=True):
        for group in range(GROUPS):
            r, g = (row[group * K : (group + 1) * K] for row in (r_row, g_row))
            for a in range(K):
                for b in range(a):
                    if g[a] != g[b]:
                        told += 1
                        right += 0.5 if r[a] == r[b] else (r[a] > r[b]) == (g[a] > g[b])
    assert pair_accuracy(reward, gold) == pytest.approx(right / told)


def test_a_lab_without_over_optimisation_says_so():
    assert why_it_shows_nothing({"frozen": {s: fooled(s) for s in range(5)}}, STEPS) == []
    healthy = why_it_shows_nothing({"frozen": {s: fine(s) for s in range(5)}}, STEPS)
    assert any("not over-optimised" in one for one in healthy)
    mixed = {s: (fooled if s < 3 else fine)(s) for s in range(6)}
    assert "in 3 of 6 seeds" in why_it_shows_nothing({"frozen": mixed}, STEPS)[0]
    said = why_it_shows_nothing({"frozen": mixed | {6: fooled(6)}}, STEPS)
    assert not any("not over-optimised" in one for one in said)
    flat = {s: made(gold=lambda x: 3 - x, reward=lambda x: 0, seed=s) for s in range(5)}
    assert any("run ahead" in one for one in why_it_shows_nothing({"frozen": flat}, STEPS)) is False
    honest = {s: made(gold=lambda x: 3 - x, reward=lambda x: -x, seed=s) for s in range(5)}
    assert any("run ahead" in one for one in why_it_shows_nothing({"frozen": honest}, STEPS))
    few = why_it_shows_nothing({"frozen": {s: fooled(s) for s in range(4)}}, STEPS)
    assert few == ["4 seeds: at least 5 are needed before an interval says anything"]
    assert any(
        "120" in one
        for one in why_it_shows_nothing({"frozen": {s: fooled(s) for s in range(5)}}, 100)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "2"], "2 seeds"),
        (["--steps", "50"], "50 steps"),
        (["--workers", "0"], "0 workers"),
        (["--first-seed", "-1"], "-1 as the first seed"),
        (["--seeds", "101"], "--seeds is at most 100"),
        (["--out", "/dev/null/x"], "--out /dev/null/x cannot be written to"),
    ],
)
def test_what_would_show_nothing_is_not_begun(arguments, words, tmp_path, capsys):
    assert command.main(["--out", str(tmp_path), *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
    assert not list(tmp_path.iterdir())


def keep(out, arm, seed, run):
    """Put a run where the lab keeps finished ones."""
    path = jobs.Job(jobs.as_long(arm, STEPS), seed, STEPS).file(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, **run)


@pytest.fixture
def core(monkeypatch):
    arms = (FROZEN, PAPER, LABELLED)
    monkeypatch.setitem(SETS, "core", arms)
    monkeypatch.setattr(jobs, "make_run", None)  # all are kept: none is made
    return arms


def test_no_table_where_nothing_is_shown(tmp_path, core, capsys):
    for arm in core:
        for seed in range(5):
            keep(tmp_path, arm, seed, fine(seed))
    given = ["--seeds", "5", "--steps", str(STEPS), "--out", str(tmp_path), "--workers", "1"]
    assert command.main(given) == 1
    said = capsys.readouterr().out
    assert "shows nothing" in said
    assert "Arms" not in said
    assert not (tmp_path / "tables.md").exists()


def test_tables_plots_and_numbers_of_finished_runs(tmp_path, core, capsys, monkeypatch):
    monkeypatch.setattr(evidence, "PUBLISHED", tmp_path / "published.json")
    for arm in core:
        for seed in range(5):
            keep(tmp_path, arm, seed, fine(seed) if arm is LABELLED else fooled(seed))
    given = ["--seeds", "5", "--steps", str(STEPS), "--out", str(tmp_path), "--workers", "1"]
    assert command.main(given) == 0
    said = capsys.readouterr().out
    assert "frozen reward model" in said
    assert "better" in said
    for name in ("tables.md", "summary.json", "lab-gold-kl.png", "lab-steps.png"):
        assert (tmp_path / name).stat().st_size > 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [table["name"] for table in summary["tables"]] == ["arms", "questions"]


def test_what_is_not_reproduced_ends_so(tmp_path, core, capsys, monkeypatch):
    """The same seeds, another world: the command fails, and says why."""
    monkeypatch.setattr(evidence, "PUBLISHED", tmp_path / "published.json")
    page = tmp_path / "evidence.md"
    page.write_text("<!-- lab: begin -->\n<!-- lab: end -->\n")
    monkeypatch.setattr(evidence, "PAGE", page)
    monkeypatch.setattr(evidence, "BEFORE", tmp_path / "before.json")
    monkeypatch.setattr(command, "IMAGES", tmp_path)
    given = ["--seeds", "5", "--steps", str(STEPS), "--out", str(tmp_path), "--workers", "1"]
    for arm in core:
        for seed in range(5):
            keep(tmp_path, arm, seed, fooled(seed))
            keep(tmp_path, arm, seed + 50, fine(seed) if arm is not FROZEN else fooled(seed + 50))
    monkeypatch.setattr(command, "PUBLISHED_SEEDS", {"core": 5})
    assert command.main([*given[2:], "--published", "--write"]) == 0
    assert command.main(given) == 0
    assert "It agrees with what is published" in capsys.readouterr().out
    assert command.main([*given, "--first-seed", "50"]) == 1
    assert "does not agree with what is published" in capsys.readouterr().out
    # The same processor: one run, however often it is written. Another: the two stand side by side.
    assert command.main([*given[2:], "--published", "--write"]) == 0
    assert "run twice" not in page.read_text()
    kept = json.loads(evidence.PUBLISHED.read_text())
    kept["machine"]["cpu"] = "another"
    kept["differences"]["labelled-25 − frozen"] = {"mean": -3.0, "half": 0.5}
    evidence.PUBLISHED.write_text(json.dumps(kept))
    for _ in range(2):
        assert command.main([*given[2:], "--published", "--write"]) == 0
        row = next(
            line
            for line in page.read_text().split("run twice")[1].splitlines()
            if "`labelled-25` − `frozen`" in line
        )
        assert row.endswith("| open | -3.00 ± 0.50 | worse | - |")
    assert "another" in page.read_text()


@pytest.mark.parametrize("bad", [b"", b"PK no zip", b"text", "half", "others", "nan"])
def test_a_damaged_kept_run_is_named(tmp_path, core, capsys, bad):
    for arm in core:
        for seed in range(5):
            keep(tmp_path, arm, seed, fooled(seed))
    path = jobs.Job(LABELLED, 2, STEPS).file(tmp_path)
    if bad == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif bad == "others":
        keep(tmp_path, LABELLED, 2, {"reward": np.zeros(3)})
    elif bad == "nan":
        keep(tmp_path, LABELLED, 2, fooled(2) | {"gold": np.full((STEPS, GROUPS * K), np.nan)})
    else:
        path.write_bytes(bad)
    given = ["--seeds", "5", "--steps", str(STEPS), "--out", str(tmp_path), "--workers", "1"]
    assert command.main(given) == 2
    assert f"{path} is damaged: delete it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        ["--write"],
        ["--write", "--all"],
        ["--write", "--sets", "more", "weak"],
        ["--write", "--published", "--first-seed", "200"],
        ["--published", "--seeds", "5"],
    ],
)
def test_the_page_is_written_whole_or_not_at_all(tmp_path, core, capsys, given):
    before = evidence.PAGE.read_bytes(), evidence.PUBLISHED.read_bytes()
    assert command.main([*given, "--out", str(tmp_path)]) == 2
    assert "--published" in capsys.readouterr().err
    assert before == (evidence.PAGE.read_bytes(), evidence.PUBLISHED.read_bytes())


def test_all_is_every_table_that_is_published(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(command, "run", lambda plan, write: made.append(plan.counts) or 0)
    for given in (["--all"], ["--published"], [], ["--sets", "weak", "--shadows"], ["--shadows"]):
        assert command.main([*given, "--out", str(tmp_path)]) == 0
    every, published, core, some, shadows = made
    assert every.keys() | {"doubts"} == published.keys() == {*SETS, "shadows"}
    assert all(5 <= every[name] <= published[name] for name in every)
    assert core == {"core": 5}
    assert some == {name: published[name] for name in ("core", "weak", "shadows")}
    assert shadows == {"core": 5, "shadows": published["shadows"]}


def test_every_arm_and_every_question_is_in_a_table(monkeypatch, tmp_path):
    """What runs for hours must not fail at the table."""
    monkeypatch.setattr(shadows, "table", lambda *given: Table("shadows", "", []))
    monkeypatch.setattr(study, "signals_tables", lambda runs: [])
    seeds = {seed: fooled(seed) for seed in range(5)}
    arms = [arm for of in SETS.values() for arm in of]
    runs = {arm.name: seeds for arm in arms}
    found = tuning.with_own(outcomes(runs), 5)
    tuned = {f"{base.name}-tuned": found["frozen"] for base, _ in RATES}
    plan = Plan(counts=command.PUBLISHED_SEEDS, first=0, steps=STEPS, workers=1, out=tmp_path)
    tables = {one.name: one for one in tables_of(plan, runs, {**found, **tuned})}
    rows = [str(row[0]) for one in tables.values() for row in one.rows]
    for name in ("core", "more", "doubts", "weak"):
        assert all(arm.says in rows for arm in SETS[name])
    for question, ours, theirs in (*QUESTIONS, *WEAK_QUESTIONS, *TUNED_QUESTIONS):
        assert f"{question} (`{ours}` − `{theirs}`)" in rows
    assert len(tables["sweeps"].rows) == len(SETS["sweeps"]) + 4
    assert len(tables["rates"].rows) == len(RATES)
    # Where the weak reward model shows nothing, the others' tables stay.
    nothing = tables_of(plan, runs, {**found, **tuned}, ["it is not over-optimised"])
    names = {one.name: one for one in nothing}
    assert names["weak-arms"].rows == [["it is not over-optimised"]]
    assert "weak" not in names
    assert "arms" in names


def test_every_arm_is_published():
    """An arm that was never run for the page would be compared with nothing."""
    arms = {arm.name for name, of in SETS.items() if name != "sweeps" for arm in of}
    published = json.loads(evidence.PUBLISHED.read_text())
    assert arms <= published["arms"].keys()
    asked = {f"{a} − {b}" for _, a, b in (*QUESTIONS, *WEAK_QUESTIONS, *TUNED_QUESTIONS)}
    assert published["differences"].keys() == asked
    page = evidence.PAGE.read_text()
    assert all(f"(`{a}` − `{b}`)" in page for _, a, b in (*QUESTIONS, *WEAK_QUESTIONS))


def test_where_nothing_can_be_kept_nothing_is_begun(capsys):
    assert command.main(["--out", "/proc/nothing"]) == 2
    said = capsys.readouterr()
    assert "--out /proc/nothing cannot be written to" in said.err
    assert said.out == ""


def test_learning_rates_are_chosen_on_other_seeds(tmp_path, core, monkeypatch, capsys):
    """The best of four there; the arm's own is not run again."""
    monkeypatch.setattr(evidence, "PUBLISHED", tmp_path / "published.json")
    rates = (0.1, 0.2, 0.3, 0.4)  # the second is its own
    monkeypatch.setattr(tuning, "RATES", ((LABELLED, rates), (PAPER, rates)))
    best = {LABELLED.name: 0.4, PAPER.name: 0.2}
    tried = [
        (base, at_rate(base, r, f"{base.name}-lr{r:g}", ""), r)
        for base in (LABELLED, PAPER)
        for r in rates
    ]
    monkeypatch.setitem(SETS, "tuning", tuple(arm for _, arm, _ in tried))
    for seed in range(5):
        for arm in core:
            keep(tmp_path, arm, seed, fooled(seed))
        for base, arm, rate in tried:
            keep(tmp_path, arm, 100 + seed, (fine if rate == best[base.name] else fooled)(seed))
        keep(tmp_path, at_rate(LABELLED, 0.4, "labelled-25-tuned", ""), seed, fine(seed))
    given = ["--seeds", "5", "--steps", str(STEPS), "--out", str(tmp_path), "--workers", "1"]
    assert command.main([*given, "--sets", "tuning"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    (shown,) = [table for table in summary["tables"] if table["name"] == "rates"]
    chosen = {row[0]: row[5:] for row in shown["rows"]}
    assert chosen["`labelled-25`"][0] == "0.4"
    assert chosen["`paper`"][0] == "0.2"  # its own: as in the other tables
    finals = {
        n: [outcome(one(s)).final for s in range(5)]
        for n, one in (("fine", fine), ("fooled", fooled))
    }
    assert chosen["`labelled-25`"][1] == cell(finals["fine"])
    assert chosen["`paper`"][1] == cell(finals["fooled"])


def test_tables_of_too_few_seeds_have_no_intervals():
    found = outcomes({"frozen": {s: fooled(s) for s in range(3)}, "paper": {0: fooled(9)}})
    text = main_table(found).text() + questions_table(found).text()
    assert "too few" in text
    assert "±" not in text.split("Gold is")[0]


def test_published_numbers_are_compared(tmp_path, monkeypatch):
    page = tmp_path / "evidence.md"
    page.write_text("before\n<!-- lab: begin -->\nwhat was there\n<!-- lab: end -->\nafter\n")
    monkeypatch.setattr(evidence, "PAGE", page)
    monkeypatch.setattr(evidence, "PUBLISHED", tmp_path / "published.json")
    found = outcomes(
        {"frozen": {s: fooled(s) for s in range(6)}, "paper": {s: fooled(9 + s) for s in range(6)}}
    )
    machine = dict.fromkeys(("date", "commit", "cpu", "python", "load_at_start"), "d")
    machine |= {"cores": 2, "memory_gib": 1.0, "compute_threads": 1, "packages": {}}
    assert evidence.against_published(found, STEPS) is None
    evidence.publish([main_table(found)], found, machine, STEPS)
    assert page.read_text().startswith("before\n<!-- lab: begin -->\n\nRun d")
    assert page.read_text().endswith("<!-- lab: end -->\nafter\n")
    assert "what was there" not in page.read_text()
    same = evidence.against_published(found, STEPS)
    assert {row[-1] for row in same.table.rows} == {"yes"}
    assert {(row[0], row[1]) for row in same.table.rows} >= {
        ("paper", "final"),
        ("paper", "kl15"),
        ("paper − frozen", "final, difference"),
    }
    assert same.reproduced
    other = outcomes({arm: {s: fine(s) for s in range(6)} for arm in ("frozen", "paper")})
    found_otherwise = evidence.against_published(other, STEPS)
    assert "NO" in {row[-1] for row in found_otherwise.table.rows}
    assert not found_otherwise.reproduced
    assert "does not agree" in found_otherwise.table.text()
    assert evidence.against_published(found, STEPS + 1) is None


def test_a_kept_run_is_its_settings_and_code(tmp_path, monkeypatch):
    job = jobs.Job(LABELLED, 0, 10)
    same = jobs.Job(LABELLED.but("labelled-25", "in other words"), 0, 10)
    assert same.file(tmp_path) == job.file(tmp_path)
    others = [
        jobs.Job(LABELLED, 1, 10),
        jobs.Job(LABELLED, 0, 11),
        jobs.Job(LABELLED.but("labelled-25", "", labelled=0.3), 0, 10),
        jobs.Job(LABELLED.but("labelled-25", "", method={"learning_rate": 1.0}), 0, 10),
    ]
    files = {job.file(tmp_path), *(one.file(tmp_path) for one in others)}
    assert len(files) == 5
    before = job.file(tmp_path)
    monkeypatch.setattr(jobs, "code_hash", lambda: "other code")
    assert job.file(tmp_path) != before
