"""`make demo`: a real server, a real policy, TRL's RLOO between them, and the head follows.

python examples/demo/run.py --steps 8
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

from model import DEFAULT_CACHE, DemoModelError, ensure_smollm2
from rich.console import Console
from server import ServerError, serving

HERE = Path(__file__).resolve().parent
RUN = "demo"
WIDTH = 256


def main() -> int:
    """Run the demo; the exit status is 0 only if it went through."""
    arguments = _arguments()
    console = Console(highlight=False, soft_wrap=True)
    # What stops the process stops it the same way as Ctrl-C: through the blocks below.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _demo(arguments, console)
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        return 130
    except Exception as error:
        console.print(f"[red]the demo stopped:[/red] {_one_line(error)}")
        if os.environ.get("R2M_DEMO_DEBUG"):
            raise
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train SmolLM2-135M with TRL's RLOO on rewards of a real R2M server.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=_number, default=8, help="RL steps, about 20 s each")
    parser.add_argument(
        "--model",
        default="",
        help="reward model to serve (folder or hub id of a sequence classifier with one label); "
        "without one: SmolLM2-135M with the head beside this script",
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="where results go")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where SmolLM2 is kept")
    parser.add_argument("--http", default=None, help="the server's HTTP address; any free port")
    parser.add_argument("--grpc", default=None, help="the server's gRPC address; any free port")
    return parser.parse_args()


def _demo(arguments: argparse.Namespace, console: Console) -> None:
    started = time.monotonic()
    out: Path = arguments.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    with console.status("policy: looking for SmolLM2-135M-Instruct") as status:

        def say(text: str) -> None:
            status.update(f"policy: {text}")
            if not console.is_terminal:  # no spinner there
                console.print(f"policy: {text}")

        smollm2 = ensure_smollm2(arguments.cache, say=say)
    console.print(f"policy        {smollm2}")
    model = arguments.model or str(smollm2)
    head = None if arguments.model else HERE / "head.safetensors"
    console.print(f"reward model  {model}" + (f" with {head.name}" if head else ""))
    with contextlib.ExitStack() as stack:
        with console.status("server: loading the reward model"):
            running = stack.enter_context(
                serving(
                    model=model,
                    head=head,
                    state=out / "state",
                    log=out / "server.log",
                    http=arguments.http,
                    grpc=arguments.grpc,
                )
            )
        console.print(f"server        {running.http} and {running.grpc}, log in {out}/server.log")
        _train(arguments, console, smollm2, running.grpc, started)


def _train(
    arguments: argparse.Namespace, console: Console, smollm2: Path, url: str, started: float
) -> None:
    with console.status("policy: loading"):
        _quiet()
        from prompts import PROMPTS
        from report import header, line, write_plot, write_summary
        from training import StepRow, train
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from r2m_client import Client
        from r2m_client.integrations.trl import R2M

        policy: Any = AutoModelForCausalLM.from_pretrained(smollm2)
        tokenizer: Any = AutoTokenizer.from_pretrained(smollm2)
    rows: list[StepRow] = []
    with Client(url, timeout=300) as client:
        run = client.create_run(
            RUN,
            policy_hidden_size=policy.config.get_text_config().hidden_size,
            method={"profile": "guarded", "width": WIDTH},
        )
        console.print(f"run           {run.run}, fingerprint {run.fingerprint[:12]}\n")
        console.print(header())
        with console.status("step 1: generating") as status:

            def show(row: StepRow) -> None:
                rows.append(row)
                console.print(line(row))

            train(
                policy,
                tokenizer,
                R2M(client, RUN),
                PROMPTS,
                steps=arguments.steps,
                out=arguments.out,
                show=show,
                doing=status.update,
            )
        heads = client.heads(RUN)
    seconds = time.monotonic() - started
    write_plot(arguments.out / "demo.png", rows)
    write_summary(arguments.out / "summary.json", rows, heads, seconds)
    accepted = sum(row.accepted for row in rows)
    console.print(
        f"\n{len(rows)} steps, {accepted} accepted, live head {rows[-1].head}, "
        f"{seconds:.0f} s in all\nplot     {arguments.out}/demo.png\n"
        f"summary  {arguments.out}/summary.json"
    )


def _quiet() -> None:
    """Keep the libraries' own chatter out of the table."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    text = str(error).strip() or type(error).__name__
    known = isinstance(error, DemoModelError | ServerError)
    return text.splitlines()[0] if known else f"{text.splitlines()[0]} ({type(error).__name__})"


def _number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1, got {text!r}")
    return int(text)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
