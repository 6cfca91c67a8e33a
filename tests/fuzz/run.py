"""`make fuzz`: everything that hunts for breaking inputs, for as long as one likes.

Two lanes side by side. One feeds the decoders through atheris, target after target; the other one
asks real servers: Schemathesis over the OpenAPI document, hypothesis over frames and messages, and
rounds of what clients do to a server. Logs, new corpus entries and crashes go to out/fuzz/. Ends
with a table; not with 0 where anything was found.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

TARGETS = (
    "json_body",
    "trainers_body",
    "safetensors_body",
    "protobuf_message",
    "align_stream",
    "score_stream",
    "head_file",
)
START_SECONDS = 600
"""What starting may take on a busy machine: torch is read, and every decoder instrumented."""


@dataclass
class Part:
    """One hunter: its name, its share of the lane's time, and what came of it."""

    name: str
    share: float
    seconds: float = 0.0
    ok: bool = False
    done: str = "not run"


class Hunt:
    """Runs the parts of both lanes.

    Args:
        minutes: of the whole hunt.
        out: folder of logs, corpora and crashes.
    """

    def __init__(self, minutes: float, out: pathlib.Path) -> None:
        self._out = out
        self._seconds = 60 * minutes
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.decoders = [Part(f"atheris {name}", 1 / len(TARGETS)) for name in TARGETS]
        self.servers = [
            Part("schemathesis", 0.4),
            Part("hypothesis", 0.3),
            Part("soak", 0.3),
        ]

    def run(self) -> bool:
        """Both lanes to their end; whether nothing was found."""
        self._out.mkdir(parents=True, exist_ok=True)
        lanes = [
            threading.Thread(target=self._lane, args=(parts,))
            for parts in (self.decoders, self.servers)
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        return all(part.ok for part in self.decoders + self.servers)

    def _lane(self, parts: list[Part]) -> None:
        for part in parts:
            seconds = max(5.0, part.share * self._seconds)
            self._say(f"{part.name}: {seconds:.0f} s")
            began = time.monotonic()
            kind, _, target = part.name.partition(" ")
            log = self._out / f"{part.name.replace(' ', '-')}.log"
            log.write_text("")
            try:
                getattr(self, f"_{kind}")(part, target, seconds, log)
            except Exception as error:  # a hunter that breaks has found something, if only itself
                part.ok, part.done = False, f"{type(error).__name__}: {error}"
            part.seconds = time.monotonic() - began
            self._say(f"{part.name}: {'clean' if part.ok else 'FOUND'}, {part.done}")

    def _atheris(self, part: Part, target: str, seconds: float, log: pathlib.Path) -> None:
        grown = self._out / "corpus" / target
        grown.mkdir(parents=True, exist_ok=True)
        done = self._called(
            [
                str(HERE / "atheris_run.py"), target,
                f"-max_total_time={int(seconds)}", "-timeout=25", "-rss_limit_mb=4096",
                "-max_len=65536", "-print_final_stats=1",
                f"-artifact_prefix={self._out / target}-",
                str(grown), str(HERE / "corpus" / target),
            ],
            log, seconds + START_SECONDS,
        )  # fmt: skip
        text = log.read_text(errors="replace")
        runs = re.findall(r"number_of_executed_units: (\d+)", text)
        part.ok = done == 0
        part.done = f"{int(runs[-1]):,} inputs" if runs else f"ended with {done}, see {log}"
        if not part.ok:
            part.done += f"; the input is {self._out}/{target}-*"

    def _schemathesis(self, part: Part, _: str, seconds: float, log: pathlib.Path) -> None:
        from fuzz_schema import schemathesis

        with self._server() as url:
            done = schemathesis(url, seconds=int(seconds))
        log.write_text(done.stdout)
        cases = re.findall(r"(\d[\d,]*) generated", done.stdout)
        part.ok = done.returncode == 0
        part.done = f"{cases[-1]} cases" if cases else f"ended with {done.returncode}, see {log}"

    def _hypothesis(self, part: Part, _: str, seconds: float, log: pathlib.Path) -> None:
        end, turns, code = time.monotonic() + seconds, 0, 0
        while code == 0 and (turns == 0 or time.monotonic() < end):
            turns += 1
            code = self._called(
                ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "900",
                 f"--hypothesis-seed={turns}{int(time.time())}",
                 str(HERE / "test_fuzz_streams.py"), str(HERE / "test_fuzz_wire.py"),
                 str(HERE / "test_fuzz_wire_calls.py")],
                log, seconds + 900, HYPOTHESIS_PROFILE="fuzz",
            )  # fmt: skip
        part.ok, part.done = code == 0, f"{turns} turns" + (f", see {log}" if code else "")

    def _soak(self, part: Part, _: str, seconds: float, log: pathlib.Path) -> None:
        code = self._called(
            ["-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--timeout", "0",
             str(ROOT / "tests" / "scenario" / "test_nothing_breaks.py")],
            log, seconds + START_SECONDS, R2M_TEST_SOAK_SECONDS=str(seconds),
        )  # fmt: skip
        sizes = re.findall(r"round \d+: (\d+) MiB", log.read_text())
        part.ok = code == 0
        part.done = f"{len(sizes)} rounds, {' → '.join(sizes[1:2] + sizes[-1:])} MiB resident"
        if code:
            part.done += f", see {log}"

    @contextmanager
    def _server(self) -> Iterator[str]:
        """A real server with a tiny model, until the block ends."""
        from support.models import save_reward_model
        from support.processes import serving

        with tempfile.TemporaryDirectory() as folder:
            model = save_reward_model(pathlib.Path(folder) / "model")
            state = pathlib.Path(folder) / "state"
            with serving(model, state, "--max-body-bytes", str(1 << 20)) as one:
                yield one.http

    def _called(self, command: list[str], log: pathlib.Path, limit: float, **more: str) -> int:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
        with log.open("ab") as output:
            done = subprocess.run(
                [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
                env=environment, timeout=limit, check=False,
            )  # fmt: skip
        return done.returncode

    def _say(self, sentence: str) -> None:
        minutes = (time.monotonic() - self._began) / 60
        with self._lock:
            print(f"[{minutes:5.1f} min] {sentence}", flush=True)


def main() -> int:
    """Hunt, and show the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="of the whole hunt")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "out" / "fuzz")
    given = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        parser.error("atheris is missing: pip install -e '.[fuzz]' (Linux alone has it)")
    hunt = Hunt(given.minutes, given.out.absolute())
    clean = hunt.run()
    print(f"\n{'part':26} {'seconds':>8}  result")
    for part in hunt.decoders + hunt.servers:
        print(f"{part.name:26} {part.seconds:8.0f}  {'clean' if part.ok else 'FOUND'}: {part.done}")
    print("\nclean" if clean else f"\nsomething was found: see {given.out}")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
