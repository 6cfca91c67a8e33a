"""Runs, one a process, each kept in a file: what was interrupted goes on where it was.

A file's name holds a hash of all that decides its numbers: the arm, the seed, the steps, and the
code, comments and layout aside. So no stale number gets into a table.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError

from lab import arms, learner, models, rlhf, training, world
from lab.arms import Arm
from lab.processes import each, processes
from lab.rlhf import Numbers, Rlhf
from r2m_service.domain import gate
from r2m_service.modeling import attention, head, loss, update

DECIDING: tuple[ModuleType, ...] = (
    *(world, models, training, learner, rlhf),
    *(attention, head, loss, update, gate),
)
"""Code that numbers depend on; the arm and its resolved settings are in a run's own hash."""
SETTINGS = (
    *("width", "alpha", "learning_rate", "weight_decay", "max_grad_norm", "omega", "kl_weight"),
    *("labels", "gate", "replay_groups", "seed"),
)
"""Keys of a method that the lab's learner reads."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run to make."""

    arm: Arm
    seed: int
    steps: int

    def file(self, out: Path) -> Path:
        """Where its numbers are kept."""
        what = asdict(self.arm)
        del what["says"], what["method"]
        settings = rlhf.settings_of(self.arm, self.seed)
        keys = {} if settings is None else asdict(settings)
        method = {key: keys[key] for key in SETTINGS if key in keys}
        text = json.dumps([what, method, self.seed, self.steps, code_hash()], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return out / "runs" / f"{self.arm.name}-{self.seed}-{key}.npz"


@cache
def code_hash() -> str:
    """Of the modules that decide the numbers, without comments and layout."""
    found = hashlib.sha256()
    for module in DECIDING:
        found.update(_code(module).encode())
    return found.hexdigest()


class _Undocumented(ast.NodeTransformer):
    """Drops strings that stand by themselves."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else node


def _code(module: ModuleType) -> str:
    assert module.__file__ is not None
    return ast.dump(_Undocumented().visit(ast.parse(Path(module.__file__).read_text())))


def run_all(jobs: Sequence[Job], out: Path, workers: int) -> None:
    """Make what is not there yet, with a bar and the time that is left.

    Raises:
        KeyboardInterrupt: what is finished stays.
    """
    missing = [job for job in jobs if not job.file(out).exists()]
    if not missing:
        return
    # The starts first: two arms of one seed would both make theirs.
    starts = {(job.seed, job.arm.start): job for job in missing}
    with processes(workers) as pool:
        for title, function, work in (
            ("policies, reward models", make_start, list(starts.values())),
            ("runs", make_run, missing),
        ):
            each(pool, title, function, {f"{job.arm.name} {job.seed}": (job, out) for job in work})


def make_start(job: Job, out: Path) -> None:
    """The policy and the reward model of a run, in a process of its own."""
    start_of(job, out)


def start_of(job: Job, out: Path) -> training.Start:
    """What a run begins with, from where it is kept.

    Raises:
        DamagedError: naming the folder.
    """
    folder = starts(out)
    try:
        return training.start_of(job.seed, job.arm.start, folder)
    except SafetensorError as error:
        raise DamagedError(
            f"a policy or a reward model of seed {job.seed} in {folder} is damaged: delete it, and "
            "it is made again"
        ) from error


def make_run(job: Job, out: Path) -> None:
    """One run, in a process of its own. The file appears when it is whole."""
    start = start_of(job, out)
    try:
        numbers = Rlhf(job.arm, start, job.seed).run(job.steps)
    except Exception as error:
        error.add_note(f"in arm {job.arm.name}, seed {job.seed}")
        raise
    path = job.file(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    with scratch.open("wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            **numbers,
            proxy_accuracy=np.float32(start.accuracy),
            gold_spread=np.float32(start.gold_spread),
        )
    scratch.replace(path)


def starts(out: Path) -> Path:
    """Where the policies and reward models that runs begin with are kept."""
    source = "".join(_code(module) for module in (world, models, training))
    return out / "starts" / hashlib.sha256(source.encode()).hexdigest()[:12]


Runs = Mapping[str, Mapping[int, Numbers]]
"""By arm and seed."""
NEEDED = {"reward", "gold", "kl", "labels"}
Make = Callable[[Sequence[Job]], Runs]
"""Runs what is not there yet, and reads all of it."""


class DamagedError(RuntimeError):
    """A kept file cannot be read: a sentence for people."""


def read(jobs: Sequence[Job], out: Path) -> Runs:
    """The numbers of finished runs.

    Raises:
        DamagedError: naming the file.
    """
    found: dict[str, dict[int, Numbers]] = {}
    for job in jobs:
        path = job.file(out)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                run: Numbers = dict(kept)
        except (BadZipFile, EOFError, ValueError, OSError, zlib.error) as error:
            raise damaged(path) from error
        if run.keys() < NEEDED or not np.isfinite(run.get("gold", np.nan)).all():
            raise damaged(path)
        found.setdefault(job.arm.name, {})[job.seed] = run
    return found


def damaged(path: Path) -> DamagedError:
    """What to say of a kept file that is not what was written."""
    return DamagedError(f"{path} is damaged: delete it, and it is made again")


def plan(names: Sequence[str], seeds: int, steps: int, first: int = 0) -> Iterator[Job]:
    """Every arm of the sets, seed by seed: what is stopped early has whole seeds."""
    for seed in range(first, first + seeds):
        for name in names:
            for arm in arms.SETS[name]:
                yield Job(as_long(arm, steps), seed, steps)


def as_long(arm: Arm, steps: int) -> Arm:
    """A schedule of ω that ends with the run."""
    omega = arm.method.get("omega", {})
    if "total_steps" not in omega:
        return arm
    return arm.but(arm.name, arm.says, method={"omega": {**omega, "total_steps": steps}})
