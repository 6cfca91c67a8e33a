"""The committed corpus through every target, whole, cut short and with bytes changed."""

import random

import pytest
from fuzz_targets import HERE, TARGETS

SEEDS = [
    pytest.param(target, file, id=f"{target}-{file.name}")
    for target in TARGETS
    for file in sorted((HERE / "corpus" / target).iterdir())
]


@pytest.mark.parametrize(("target", "file"), SEEDS)
def test_the_corpus_finds_nothing(target, file):
    data = file.read_bytes()
    run = TARGETS[target]
    run(data)
    draw = random.Random(file.name)
    for _ in range(12):
        run(data[: draw.randrange(len(data) + 1)])
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        run(bytes(changed))


def test_every_target_has_a_corpus_and_it_is_small():
    files = [file for target in TARGETS for file in (HERE / "corpus" / target).iterdir()]
    assert {file.parent.name for file in files} == set(TARGETS)
    assert sum(file.stat().st_size for file in files) < 200_000
