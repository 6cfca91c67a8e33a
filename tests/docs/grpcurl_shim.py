"""`grpcurl` for the tests: the part of its command line that docs/api.md uses, done by `buf curl`.

Both find the methods by server reflection, take a request as protobuf's JSON form, and print the
answers in it; here buf's errors get grpcurl's form. grpcurl itself is not on PyPI, buf is.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import pathlib
import subprocess
import sys

# grpcurl's names of the statuses, in the order of their numbers.
_STATUSES = (
    *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound"),
    *("AlreadyExists", "PermissionDenied", "ResourceExhausted", "FailedPrecondition"),
    *("Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss"),
    "Unauthenticated",
)
_CURL = ["buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
_OFFSET = 64


def main(arguments):
    parser = argparse.ArgumentParser(prog="grpcurl", allow_abbrev=False)
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-d", default="")
    parser.add_argument("address")
    parser.add_argument("symbol")
    parser.add_argument("service", nargs="?")
    given = parser.parse_args(arguments)
    if given.symbol == "list":
        return listing(f"http://{given.address}", given.service)
    data = sys.stdin.read() if given.d == "@" else given.d
    done = subprocess.run(
        [*_CURL, "-d", data, f"http://{given.address}/{given.symbol}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    sys.stdout.write(done.stdout)
    if done.returncode and not done.returncode % 8:
        return refused(done.returncode // 8, json.loads(done.stderr))
    sys.stderr.write(done.stderr)
    if done.returncode == 0:
        with pathlib.Path(os.environ["GRPCURL_LOG"]).open("a") as log:
            log.write(f"{given.symbol}\n")
    return done.returncode


def listing(url, service):
    kind = "--list-methods" if service else "--list-services"
    done = subprocess.run([*_CURL, kind, url], capture_output=True, text=True, check=True)
    for line in done.stdout.split():
        if service is None:
            print(line)
        elif line.startswith(f"{service}/"):
            print(line.replace("/", "."))
    return 0


def refused(number, error):
    # Here, and not at the top: most calls succeed, and this takes most of the time.
    from google.protobuf.any_pb2 import Any
    from google.protobuf.json_format import MessageToDict
    from google.rpc import error_details_pb2  # noqa: F401 - makes its messages known

    lines = ["ERROR:", f"  Code: {_STATUSES[number]}", f"  Message: {error['message']}"]
    for place, detail in enumerate(error.get("details", ()), 1):
        raw = detail["value"]
        packed = Any(
            type_url=f"type.googleapis.com/{detail['type']}",
            value=base64.b64decode(raw + "=" * (-len(raw) % 4)),
        )
        shown = json.dumps(MessageToDict(packed), indent=2, sort_keys=True)
        if place == 1:
            lines.append("  Details:")
        lines.append(f"  {place})\t" + shown.replace("\n", "\n    \t"))
    print("\n".join(lines), file=sys.stderr)
    return _OFFSET + number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
