"""Build the CPU image without a Docker engine, run it read-only and without root, score, stop it.

`make image-test`: needs Linux, root, buildah and debootstrap; takes five to ten minutes the first
time. The base is Debian's, made by debootstrap, in the place of the python image that the
Dockerfile names; no registry of images is asked. What it runs is read from the image itself:
entrypoint, user, environment, health check, signal.

For indexes of one's own: R2M_TEST_PIP_CONF names a pip.conf (given as the build's secret), and
R2M_TEST_BUILD_VOLUMES has FROM:TO:ro, separated by spaces, for what that file names.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.models import save_reward_model
from support.processes import free_port

CACHE = ROOT / ".cache" / "image"
BASE, IMAGE = "localhost/r2m-test-base", "localhost/r2m-serve:test"
PACKAGES = "ca-certificates,python3,python3-venv"
# Runs in a mount namespace of its own: the image read-only, the volumes over it, then the image's
# user, without any right. The rest of the arguments is the command.
JAIL = """
set -e
root=$1 volumes=$2 mode=$3 user=$4 folder=$5
shift 5
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind "$volumes/model" "$root/model"
mount -o remount,bind,ro "$root/model"
mount --bind "$volumes/state" "$root/state"
mount -o "remount,bind,$mode" "$root/state"
exec chroot "$root" setpriv --reuid "${user%:*}" --regid "${user#*:}" --clear-groups \\
  --no-new-privs --bounding-set=-all --inh-caps=-all env -C "$folder" "$@"
"""


def buildah(*arguments: str) -> str:
    """Run buildah with a store of its own."""
    store = ["--root", str(CACHE / "root"), "--runroot", str(CACHE / "run")]
    done = subprocess.run(["buildah", *store, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"buildah {arguments[0]} failed")
    return done.stdout.strip()


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def base() -> None:
    """Debian's Python as the base, made once."""
    if BASE in buildah("images", "--format", "{{.Name}}"):
        return
    say("base: debootstrap")
    folder = CACHE / "rootfs"
    shutil.rmtree(folder, ignore_errors=True)
    log = CACHE / "debootstrap.log"
    with log.open("w") as out:
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm"]
        if subprocess.run([*command, folder], stdout=out, stderr=out).returncode:
            raise SystemExit(f"debootstrap failed: see {log}")
    container = buildah("from", "scratch")
    buildah("add", "-q", container, str(folder), "/")
    buildah("commit", "-q", "--rm", container, BASE)
    shutil.rmtree(folder)


def build() -> dict:
    """The image from the Dockerfile, and its configuration."""
    say("image: buildah bud (log in .cache/image/build.log)")
    arguments = ["--isolation", "chroot", "--format", "docker", "--pull-never"]
    arguments += ["--build-arg", f"BASE={BASE}", "-f", "docker/Dockerfile", "-t", IMAGE]
    empty = CACHE / "pip.conf"
    empty.write_text("")
    arguments += ["--secret", f"id=pip,src={os.environ.get('R2M_TEST_PIP_CONF', empty)}"]
    for volume in os.environ.get("R2M_TEST_BUILD_VOLUMES", "").split():
        arguments += ["-v", volume]
    arguments += ["--logfile", str(CACHE / "build.log"), "."]
    (CACHE / "build.log").unlink(missing_ok=True)
    os.chdir(ROOT)
    buildah("bud", *arguments)
    return inspect()


def inspect() -> dict:
    """The image's configuration."""
    return json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]


class Run:
    """The image's command as process 1 of its own namespaces; the network is this machine's.

    Args:
        config: the image's.
        root: its files.
        volumes: a folder with `state` and `model`.
        settings: variables beside the image's own.
        state_mode: rw, or ro: the volume of the registry is read-only.
    """

    def __init__(self, config, root, volumes, settings, state_mode="rw"):
        self.config, self.user = config, config["User"]
        self.given = {**dict(one.split("=", 1) for one in config["Env"]), **settings}
        command = [*config["Entrypoint"], *config["Cmd"]]
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", JAIL, "jail",
             root, volumes, state_mode, self.user, config["WorkingDir"], *command],
            env={**self.given, "PATH": f"{self.given['PATH']}:/usr/sbin"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def first(self) -> int:
        """The server's process id on this machine."""
        pid = self.process.pid
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if children:
                return int(children[0])
            time.sleep(0.01)
        raise AssertionError("it did not start")

    def ready(self, url: str) -> float:
        """Wait for /readyz; the seconds it took."""
        start = time.monotonic()
        while time.monotonic() < start + 300:
            assert self.process.poll() is None, self.process.stdout.read()
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return time.monotonic() - start
        raise AssertionError("not ready")

    def inside(self, *command: str) -> subprocess.CompletedProcess:
        """A command in the same namespaces, as the same user."""
        uid, _, gid = self.user.partition(":")
        enter = ["nsenter", "--target", str(self.first()), "--mount", "--pid", "--root"]
        enter += [f"--setuid={uid}", f"--setgid={gid}", f"--wd=/proc/{self.first()}/cwd"]
        return subprocess.run(
            [*enter, *command], env=self.given, capture_output=True, text=True, timeout=60
        )

    def stop(self) -> tuple[int, str, float]:
        """SIGTERM to process 1; exit code, output, seconds."""
        start = time.monotonic()
        os.kill(self.first(), getattr(signal, self.config["StopSignal"]))
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output, time.monotonic() - start

    def failed(self) -> str:
        """What it said when it did not start."""
        output, _ = self.process.communicate(timeout=120)
        assert self.process.returncode != 0, output
        return output


def volumes() -> pathlib.Path:
    """A small reward model, and an empty registry that the image's user may write."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="r2m-image-"))
    folder.chmod(0o755)
    save_reward_model(folder / "model")
    for file in (folder / "model").iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone
    (folder / "state").mkdir()
    os.chown(folder / "state", 10001, 10001)
    return folder


def addresses() -> tuple[dict[str, str], str]:
    """Settings that listen on free ports of loopback, and HTTP's URL."""
    http, grpc = free_port(), free_port()
    settings = {
        "R2M_HTTP": f"127.0.0.1:{http}", "R2M_GRPC": f"127.0.0.1:{grpc}", "R2M_MODEL": "/model",
        "R2M_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    return settings, f"http://127.0.0.1:{http}"


def check_life(config, root, folder) -> None:
    """Start, look, score, align's store, health, stop."""
    settings, url = addresses()
    run = Run(config, root, str(folder), settings)
    try:
        say(f"ready after {run.ready(url):.1f} s")
        status = pathlib.Path(f"/proc/{run.first()}/status").read_text()
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert facts["Uid"].split() == ["10001"] * 4, facts["Uid"]
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
        assert facts["NoNewPrivs"].strip() == "1"
        assert facts["NSpid"].split()[-1] == "1"
        say("user 10001, no capabilities, process 1")
        denied = run.inside("sh", "-c", "echo > /opt/r2m/x || echo > /model/x")
        assert denied.returncode, "the image or the model can be written"
        say(f"read-only: {denied.stderr.splitlines()[0]}")
        drivers = run.inside("python3", "-c", "import psycopg, pyarrow, s3fs")
        assert drivers.returncode == 0, drivers.stderr
        health = run.inside(*config["Healthcheck"]["Test"][1:])
        assert health.returncode == 0, health.stdout + health.stderr
        scored = run.inside(
            "r2m", "score", "--url", url, "--raw", "--prompt", "2 + 2 =", "--response", " 4"
        )
        assert scored.returncode == 0, scored.stdout + scored.stderr
        reward = json.loads(scored.stdout)["reward"]
        assert isinstance(reward, float)
        say(f"health check passes; scored: reward {reward}")
        body = {"run": "image", "policy": {"hidden_size": 8, "hidden_state": "post_norm"}}
        call = urllib.request.Request(
            f"{url}/v1/runs", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(call, timeout=30) as answer:
            assert answer.status == 201, answer.status
        assert (folder / "state" / "r2m.db").stat().st_uid == 10001
        code, output, took = run.stop()
        assert code == 0, output
        assert "draining" in output
        say(f"a run is in the registry; SIGTERM: exit code 0 after {took:.1f} s")
    finally:
        run.process.kill()


def check_refusals(config, root, folder) -> None:
    """What is said at once of a registry that is read-only, and of a model that is missing."""
    settings, _ = addresses()
    said = Run(config, root, str(folder), settings, "ro").failed().splitlines()[-1]
    assert "read-only" in said.lower() or "cannot be written" in said, said
    say(f"registry read-only: {said}")
    shutil.rmtree(folder / "model")
    (folder / "model").mkdir()
    said = Run(config, root, str(folder), settings).failed().splitlines()[-1]
    assert "/model" in said, said
    say(f"model volume empty: {said}")
    run = Run(config, root, str(folder), {**settings, "R2M_MODEL": "/model/nowhere"})
    said = run.failed().splitlines()[-1]
    assert "there is no folder /model/nowhere" in said, said
    say(f"model folder missing: {said}")


def check_early_stop(config, root, folder) -> None:
    """SIGTERM while torch is still being imported ends it too."""
    settings, _ = addresses()
    run = Run(config, root, str(folder), settings)
    time.sleep(1.5)
    code, output, took = run.stop()
    assert took < 30, output
    say(f"SIGTERM at the start: exit code {code} after {took:.1f} s")


def main() -> int:
    """All of it; what fails says why. `--no-build`: with the image of the last time."""
    missing = [name for name in ("buildah", "debootstrap", "unshare", "setpriv", "nsenter")
               if shutil.which(name) is None]  # fmt: skip
    if missing or os.geteuid() != 0:
        raise SystemExit(f"needs root and {', '.join(missing) or 'nothing more'}")
    CACHE.mkdir(parents=True, exist_ok=True)
    base()
    config = inspect() if "--no-build" in sys.argv[1:] else build()
    size = buildah("images", "--format", "{{.Size}}", IMAGE)
    say(f"built: {size}, user {config['User']}, volumes {', '.join(config['Volumes'])}")
    container = buildah("from", "--pull-never", IMAGE)
    folder = volumes()
    try:
        root = buildah("mount", container)
        check_life(config, root, folder)
        check_early_stop(config, root, folder)
        check_refusals(config, root, folder)
    finally:
        buildah("umount", container)
        buildah("rm", container)
        shutil.rmtree(folder)
    say("1 passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
