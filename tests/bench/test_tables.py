"""Every table of `make bench`, in its smallest form: so that none rots between two runs of it.

The tables that need our server share one process; what they say of speed is not looked at.
"""

import contextlib
import importlib
import json
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux", reason="the benchmarks bind processes to cores, and read /proc"
    ),
    pytest.mark.timeout(600),  # they start processes, all on one core
]

KEYS = {
    "attention": {"absorbed_speedup_forward", "absorbed_speedup_backward"},
    "throughput": {
        "server_vs_limit",
        "server_vs_best_peer",
        "best_peer",
        "server_vs_plain_fastapi_short",
        "server_vs_plain_fastapi_real",
        "aa_spread",
    },
    "feedback": {
        "streamed_cost",
        "split_cost",
        "split_bytes_per_response",
        "streamed_bytes_per_response",
    },
    "align": {"align_vs_score", "align_vs_full_update"},
    "latency": {"overload_refused_share", "overload_memory_ratio"},
    "swap": {"swap_failed", "swap_p99_ratio"},
    "gpu": {"gpu_mfu", "gpu_server_vs_limit", "gpu_streamed_cost", "gpu_pool_bandwidth_share"},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Our server on the tables' tiny model and the bare model, one process each for all tables."""
    from bench.models import save_random_model
    from bench.scale import TINY
    from bench.servers import bare_model, ours

    folder = tmp_path_factory.mktemp("server")
    model = save_random_model(folder / "model", TINY.shape)
    with (
        ours(model, folder, "--keep-optimizers", "64") as server,
        bare_model(model) as bare,
    ):
        yield server, bare


@pytest.fixture
def make(shared, monkeypatch):
    """Makes a table, its own server and bare model replaced by the shared ones."""
    from bench.scale import TINY
    from bench.servers import PEERS

    @contextlib.contextmanager
    def ours(*_):
        yield shared[0]

    @contextlib.contextmanager
    def bare_model(*_):
        yield shared[1]

    def make(name):
        module = importlib.import_module(f"bench.{name}")
        if hasattr(module, "ours"):
            monkeypatch.setattr(module, "ours", ours)
        if hasattr(module, "bare_model"):
            monkeypatch.setattr(module, "bare_model", bare_model)
        if hasattr(module, "PEERS"):  # the one peer that needs no package of its own
            monkeypatch.setattr(module, "PEERS", {"plain fastapi": PEERS["plain fastapi"]})
        said = []
        table = module.table(TINY, said.append)
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert said or name == "attention"
        return table

    return make


@pytest.mark.parametrize("name", KEYS)
def test_a_table_has_its_numbers_and_can_be_printed_and_kept(name, make, out):
    from bench import machine, report

    table = make(name)
    assert set(table.keys) >= KEYS[name]
    assert table.title in table.text()
    assert all(key in table.text() for key in table.keys)
    path = report.save([table], machine.describe(), out / name)
    summary = json.loads(path.read_text())
    assert set(table.keys) <= set(summary)
    assert f"### {table.title}" in report.section(summary)
