"""Write constraints.txt: the release of every package in the images, as pip resolves them today.

python docker/pin.py     # make pins
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

DOCKER = Path(__file__).resolve().parent
EXTRAS = "service,journal,postgres,s3,otel"
HEAD = "# Every package of the images. Written by `make pins`; what torch brings it pins itself.\n"


def pins(report: str) -> dict[str, str]:
    """Names and releases of pip's report, without our own package and build labels (+cpu)."""
    found: dict[str, str] = {}
    for one in json.loads(report)["install"]:
        meta = one["metadata"]
        found[meta["name"].lower().replace("_", "-")] = meta["version"].partition("+")[0]
    found.pop("r2m-serve", None)
    brought = ("nvidia-", "cuda-", "triton")
    return {name: found[name] for name in sorted(found) if not name.startswith(brought)}


def main() -> int:
    """Resolve and write."""
    torch = sys.argv[1] if len(sys.argv) > 1 else "torch"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--report", "-", torch, f"{DOCKER.parent}[{EXTRAS}]"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    lines = [f"{name}=={release}\n" for name, release in pins(done.stdout).items()]
    (DOCKER / "constraints.txt").write_text("".join([HEAD, *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
