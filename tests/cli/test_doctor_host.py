"""The doctor's checks of the machine, on machines made up."""

import pytest
import torch

from r2m_service.doctor import host, model
from r2m_service.doctor.finding import Level, Patient, size
from r2m_service.settings import Settings

GIB = 1 << 30


def patient(**changes):
    settings = Settings(model="m", inflight_bytes=GIB, cache_bytes=GIB, head_cache_bytes=GIB)
    return Patient(settings, **{"device": torch.device("cpu"), "dtype": "float32", **changes})


@pytest.mark.parametrize(
    ("parameters", "dtype", "free", "level"),
    [
        (GIB, "float32", 8 * GIB, Level.OK),  # 4 + 3 GiB
        (GIB, "float32", 7 * GIB - 1, Level.WARNING),
        (GIB, "float32", 4 * GIB - 1, Level.PROBLEM),
        (GIB, "bfloat16", 4 * GIB, Level.WARNING),  # 2 + 3 GiB
        (None, "float32", 1, Level.OK),
        (GIB, "float32", None, Level.OK),
    ],
)
def test_memory(parameters, dtype, free, level, monkeypatch):
    monkeypatch.setattr(host, "free_memory", lambda: free)
    one = patient(parameters=parameters, dtype=dtype)
    finding = host.check_memory(one)
    assert (finding and finding.level) == level
    assert one.fits == (level is not Level.PROBLEM)
    # What does not fit is not loaded to see.
    one.config = object()
    if not one.fits:
        assert model.check_weights(one) is None


@pytest.mark.parametrize(("on_gpu", "level"), [(3 * GIB, Level.PROBLEM), (5 * GIB, Level.OK)])
def test_memory_of_a_gpu(on_gpu, level, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (on_gpu, 16 * GIB))
    monkeypatch.setattr(host, "free_memory", lambda: 32 * GIB)
    finding = host.check_memory(patient(device=torch.device("cuda"), parameters=GIB))
    assert finding.level == level
    assert f"{on_gpu // GIB}.0 GiB free" in finding.found


def test_free_memory_knows_a_containers_limit(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    2097152 kB\n")
    assert host.free_memory(tmp_path, meminfo) == 2 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    assert host.free_memory(tmp_path, meminfo) == 2 * GIB
    (tmp_path / "memory.max").write_text(f"{GIB + 100}\n")
    assert host.free_memory(tmp_path, meminfo) == 100
    # Files that were read are given up when memory is needed.
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 20\nactive_file 3\n")
    assert host.free_memory(tmp_path, meminfo) == 123
    assert host.free_memory(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(
    ("start", "rate", "level"),
    [
        (1.8e9, 1.0, Level.OK),
        (0.0, 1.0, Level.WARNING),  # 1970: no battery, no NTP
        (9e9, 1.0, Level.WARNING),
        (1.8e9, 2.0, Level.WARNING),
        (1.8e9, 0.0, Level.WARNING),
    ],
)
def test_clock(start, rate, level):
    passed = [0.0]

    def sleep(seconds):
        passed[0] += seconds

    finding = host.check_clock(
        patient(), lambda: start + rate * passed[0], lambda: passed[0], sleep
    )
    assert finding.level == level


def test_a_single_late_reading_is_no_broken_clock():
    steady = iter([0.0, 5.0] + [0.0, host.CLOCK_SECONDS] * 2)
    wall = iter([1.8e9, *[1.8e9, 1.8e9 + host.CLOCK_SECONDS] * 3])
    finding = host.check_clock(patient(), lambda: next(wall), lambda: next(steady), lambda _: None)
    assert finding.level == Level.OK


def test_packages(monkeypatch):
    assert host.check_packages(patient()).level == Level.OK
    wanted = [
        "click>=8",
        "torch>=99; extra == 'service'",
        "nowhere-to-be-found; extra == 'service'",
    ]
    wanted.append("another-one; extra == 'demo'")
    monkeypatch.setattr(host, "requires", lambda _name: wanted)
    finding = host.check_packages(patient())
    assert finding.level == Level.PROBLEM
    assert "nowhere-to-be-found is missing" in finding.found
    assert "needed is >=99" in finding.found
    assert "another-one" not in finding.found
    assert "click" not in finding.found


def test_an_old_python(monkeypatch):
    assert host.check_python(patient()).level == Level.OK
    monkeypatch.setattr(host, "NEEDED_PYTHON", (99, 0))
    assert host.check_python(patient()).level == Level.PROBLEM


def test_bfloat16_on_a_gpu_that_has_none(monkeypatch):
    one = patient(device=torch.device("cpu"), dtype=None)
    one.settings = Settings(model="m", dtype="bfloat16")
    assert model.check_dtype(one).level == Level.OK
    monkeypatch.setattr(model, "_has_bfloat16", lambda _device: False)
    assert model.check_dtype(one).level == Level.WARNING


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 29, "1.5 GiB")],
)
def test_sizes(count, words):
    assert size(count) == words
