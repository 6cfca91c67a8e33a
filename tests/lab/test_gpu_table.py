"""Arms of real models side by side, on logs made by hand."""

import json

import numpy as np
import pytest

from lab import gpu_table


def keep(folder, arm, seed, judge, kl, name="rewards/judge/mean"):
    path = folder / f"{arm}-{seed}" / "steps.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"step": n, name: a, "kl": b} for n, (a, b) in enumerate(zip(judge, kl, strict=True))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def curves(seed, fall):
    """Up to 1 at half of the run, then down by `fall`; KL from 0 to 2."""
    at = np.linspace(0, 1, 100)
    noise = 0.01 * np.random.default_rng(seed).standard_normal(100)
    return np.where(at < 0.5, 2 * at, 1 - fall * (2 * at - 1)) + noise + 0.1 * seed, 2 * at


def test_what_is_better_at_the_end_and_at_equal_kl(tmp_path, capsys):
    for seed in range(5):
        keep(tmp_path, "frozen", seed, *curves(seed, 1.0))
        judge, kl = curves(seed, 0.0)
        keep(tmp_path, "labelled-none", seed, judge, kl / 2)  # it went half as far
    assert gpu_table.main([str(tmp_path)]) == 0
    table = gpu_table.table_of(gpu_table.read(tmp_path))
    frozen, ours = table.rows
    assert [frozen[0], ours[0]] == ["frozen", "labelled-none"]
    assert float(frozen[3].split()[0]) == pytest.approx(0.2 + 0.09, abs=0.05)
    assert "better" in ours[-2]
    assert ours[-2].startswith("+0.9")
    # At KL 0.96, half way, the frozen one had not fallen yet.
    assert abs(float(ours[-1].split()[0])) < 0.15
    assert "not over-optimised" not in table.text()
    assert (tmp_path / "table.md").read_text().startswith("### Real models")
    assert "labelled-none" in capsys.readouterr().out


def test_what_shows_nothing_says_so(tmp_path, capsys):
    assert gpu_table.main([str(tmp_path)]) == 2
    assert "run lab.gpu first" in capsys.readouterr().err
    for seed in range(4):
        keep(tmp_path, "frozen", seed, *curves(seed, 1.0))
    text = gpu_table.table_of(gpu_table.read(tmp_path)).text()
    assert "4 seeds of the frozen arm show nothing" in text
    assert "±" not in text.split("Running means")[0]
    keep(tmp_path, "frozen", 4, *curves(4, 1.0))
    for seed in range(5):
        keep(tmp_path, "frozen", seed, *curves(seed, 0.0))
    assert "was not over-optimised" in gpu_table.table_of(gpu_table.read(tmp_path)).text()
    (tmp_path / "frozen-4" / "steps.jsonl").write_text('{"kl": 1}\n')
    assert gpu_table.main([str(tmp_path)]) == 2
    assert "frozen-4/steps.jsonl: it should have `kl`" in capsys.readouterr().err


def test_the_judge_that_nobody_learns_from_is_the_witness(tmp_path):
    for seed in range(5):
        judge, kl = curves(seed, 1.0)
        keep(tmp_path, "frozen", seed, judge, kl, "rewards/eval_judge/mean")
    assert gpu_table.read(tmp_path)["frozen"][0].final < 0.3
