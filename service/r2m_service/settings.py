"""Every setting of a server: flags, environment, file, help and docs/settings.md come from here.

`sources` puts their values together; `Settings(...)` alone takes arguments and the environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from r2m_service.domain.retention import Keep
from r2m_service.domain.runs import EmptyResponse, TextRules, Truncation
from r2m_service.modeling import TEMPLATE_DATE


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("is HOST:PORT, for example 127.0.0.1:8080 (port 0: any free one)")
    return value


def _http_url(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", value):
        raise ValueError("is a URL, for example http://127.0.0.1:4318")
    return value


def _day(value: object) -> object:
    # pydantic would also take a number of seconds.
    if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        raise ValueError("is a date, YYYY-MM-DD, for example 2025-01-31")
    return value


@dataclass(frozen=True, slots=True)
class Hide:
    """Marks a setting of which `r2m config` must not show all.

    Attributes:
        what: `value`: a secret, shown as "set"; `credentials`: a URL, shown without its user,
            password and query; `json`: shown as "set" where it is JSON, and not a path.
    """

    what: Literal["value", "credentials", "json"]


Address = Annotated[str, AfterValidator(_address)]
GIB = 1 << 30
PREFIX = "R2M_"


class Settings(BaseSettings):
    """What `r2m serve` takes. A flag wins over the environment, that over the file."""

    # An empty variable counts as none: compose files and charts pass on what was not given so.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", protected_namespaces=()
    )

    model: str = Field(
        description="reward model: a folder or hub id of a sequence classifier with one label, of "
        "an adapter, or of any decoder (then --head is needed); docs/models.md lists them",
        examples=["./my-reward-model"],
    )
    head: Path | None = Field(
        default=None,
        description="scoring head for a decoder: safetensors with head.weight [1, hidden size] and "
        "maybe head.bias [1], or LLaMA-Factory's value_head.safetensors",
        examples=["head.safetensors"],
    )
    state: Path = Field(
        default=Path("r2m-state"), description="folder of the embedded registry and the heads"
    )
    registry: Annotated[str | None, Hide("credentials")] = Field(
        default=None,
        description="database URL instead of SQLite in --state",
        examples=["postgresql://r2m@db.example/r2m"],
    )
    blobs: Annotated[str | None, Hide("credentials")] = Field(
        default=None,
        description="fsspec URL for the heads' files instead of a folder in --state",
        examples=["s3://my-bucket/r2m"],
    )
    http: Address = Field(default="127.0.0.1:8080", description="HTTP address")
    grpc: Address = Field(default="127.0.0.1:50051", description="gRPC address")
    ops: Address | None = Field(
        default=None,
        description="address of its own for probes (/livez, /readyz), without keys and TLS; "
        "default: they are on --http",
        examples=["127.0.0.1:9090"],
    )
    keys: Annotated[str | None, Hide("json")] = Field(
        default=None,
        description="file of API keys, as `r2m keys` writes it, or its JSON itself; without, "
        "whoever reaches the server may call",
        examples=["./r2m-keys.json"],
    )
    insecure: bool = Field(
        default=False,
        description="listen beyond loopback without keys: for networks where everybody may score "
        "and align",
    )
    tls_cert: Path | None = Field(
        default=None,
        description="certificate of the server, with its chain, in PEM form: TLS on HTTP and gRPC",
        examples=["tls/server.pem"],
    )
    tls_key: Path | None = Field(
        default=None, description="its private key, in PEM form", examples=["tls/server.key"]
    )
    tls_client_ca: Path | None = Field(
        default=None,
        description="CA whose certificate every client must have (mutual TLS), in PEM form",
        examples=["tls/clients.pem"],
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, …")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the backbone; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="tokens a text may have; default: the lesser of what model and tokenizer state",
        examples=[4096],
    )
    truncation: Truncation = Field(
        default="none",
        description="of texts that are too long and scored without a run: none (an error), or the "
        "side that is cut, left or right; runs have a setting of their own",
    )
    empty_response: EmptyResponse = Field(
        default="score",
        description="what an empty response to a prompt gets, without a run, and in a new run that "
        "states nothing: score (a reward), or error (text_empty)",
    )
    chat_template: str | None = Field(
        default=None,
        description="name of the chat template, where the tokenizer has several; default: the one "
        "called default",
        examples=["rag"],
    )
    template_date: Annotated[date, BeforeValidator(_day)] = Field(
        default=TEMPLATE_DATE,
        description="what a chat template that asks for today's date (Llama 3.2, Granite) writes "
        "instead, so that rewards stay the same; then it is part of the fingerprint",
        examples=["2025-01-31"],
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with the model"
    )
    deterministic: bool = Field(
        default=False,
        description="every sample alone and unpadded: the same reward bit for bit in whatever "
        "batch; slower",
    )
    compile: bool = Field(
        default=False,
        description="compile the backbone (torch.compile) before the server is ready: minutes at "
        "the start, for a faster forward pass on a GPU",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="compute threads on a CPU; default: all, 1 if deterministic",
        examples=[8],
    )
    token_budget: int = Field(default=16384, ge=1, description="padded tokens of one forward pass")
    batch_items: int = Field(default=256, ge=1, description="samples of one batch")
    batch_bytes: int = Field(
        default=GIB // 4, ge=1, description="bytes of hidden states of one batch"
    )
    cache_bytes: int = Field(
        default=GIB, ge=0, description="bytes of embeddings kept for align and for other heads"
    )
    head_cache_bytes: int = Field(default=2 * GIB, ge=0, description="bytes of heads kept loaded")
    max_head_bytes: int = Field(
        default=2 * GIB, ge=1, description="bytes one head of a run may take"
    )
    keep_heads: int = Field(
        default=20, ge=1, description="heads of a run kept on disk: the last so many"
    )
    keep_every: int = Field(
        default=50,
        ge=0,
        description="and every one whose number this divides; 0: none, 1: all of them",
    )
    max_staleness: int = Field(
        default=8,
        ge=0,
        description="and those that score the last so many steps of every branch (`step` of score)",
    )
    keep_optimizers: int = Field(
        default=3,
        ge=0,
        description="optimizer states kept, beside those of live and aliased heads: rollback goes "
        "back to such heads alone",
    )
    max_body_bytes: int = Field(
        default=GIB, ge=1024, description="bytes of one request, on HTTP, gRPC and in a stream"
    )
    inflight_bytes: int = Field(
        default=4 * GIB, ge=1024, description="bytes of all requests in memory at once"
    )
    inflight_requests: int = Field(
        default=1024,
        ge=1,
        description="requests in hand at once, streams aside; more are `overloaded`",
    )
    grpc_message_bytes: int = Field(
        default=GIB // 4,
        ge=1024,
        description="bytes of one gRPC message; its size is unknown before it is read, so as much "
        "is reserved meanwhile",
    )
    queue_samples: int = Field(
        default=16384,
        ge=1,
        description="samples in line for the device; a run may take as many as are free. Beyond, "
        "calls are `overloaded` and streams wait",
    )
    buffer_bytes: int = Field(
        default=GIB // 4,
        ge=0,
        description="bytes of memory kept for hidden states to come, once those before are done",
    )
    stream_samples: int = Field(
        default=1024, ge=1, description="samples in flight of one ScoreStream"
    )
    label_samples: int = Field(
        default=10_000, ge=1, description="samples of a run kept until their outside labels come"
    )
    label_bytes: int = Field(
        default=4 * GIB, ge=0, description="bytes of hidden states kept with them, by run"
    )
    journal: Path | None = Field(
        default=None,
        description="folder to append every score and align to, for `r2m replay`",
        examples=["./journal"],
    )
    journal_full: bool = Field(
        default=False, description="keep hidden states in the journal too; much larger"
    )
    compat_run: str | None = Field(
        default=None,
        description="run whose live head answers what trainers call by themselves (/get_reward, "
        "/slime, /classify, /v1/embeddings, /verify), with feedback backbone or none; default: the "
        "frozen reward model",
        examples=["tldr-7"],
    )
    get_reward_text: Literal["one-eos", "as-is", "tokenizer"] = Field(
        default="as-is",
        description="how OpenRLHF's /get_reward reads a query. as-is: no special tokens are added, "
        "and what is too long is cut on the right, as OpenRLHF's server does since 0.8.3; one-eos: "
        "likewise, and one eos ends it in place of the pads and eos around it, as it did before; "
        "tokenizer: as on the other routes, with the special tokens that the tokenizer adds, and "
        "uncut",
    )
    metrics_runs: int = Field(
        default=32,
        ge=0,
        description="runs that /metrics shows one by one, those used last; how many are left out "
        "it says too",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="of the log on stderr: lines for people, or one JSON each"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="what is logged, from here on; debug also has probes and samples of streams",
    )
    log_content: bool = Field(
        default=False,
        description="log samples' texts and what unexpected errors say, which may hold some; "
        "without, no prompt or response is ever in the log",
    )
    otlp_endpoint: Annotated[str | None, Hide("credentials"), AfterValidator(_http_url)] = Field(
        default=None,
        description="OpenTelemetry collector (OTLP over HTTP) that traces go to; default: none are "
        "made. Headers and more by the OTEL_… variables",
        examples=["http://127.0.0.1:4318"],
    )
    otlp_share: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="share of the calls that are traced, where the client did not decide it",
    )
    reply_seconds: float = Field(
        default=60.0,
        gt=0,
        description="how long a trainer that keeps its hidden states (split) has to answer what an "
        "align asks",
    )
    drain_seconds: float = Field(
        default=20.0, ge=0, description="seconds that work at hand gets at shutdown"
    )

    @property
    def texts(self) -> TextRules:
        """The rules of texts that are scored without a run."""
        return TextRules(self.truncation, self.empty_response)

    @property
    def keep(self) -> Keep:
        """The retention rule's numbers."""
        return Keep(
            heads=self.keep_heads,
            every=self.keep_every,
            staleness=self.max_staleness,
            optimizers=self.keep_optimizers,
        )

    @property
    def embedded(self) -> bool:
        """Whether database and files both lie in the state folder: no other server's are there."""
        return self.registry is None and self.blobs is None

    @property
    def registry_location(self) -> str | Path:
        """The database that holds the metadata: a URL, or SQLite's file."""
        return self.registry or self.state / "r2m.db"

    @property
    def blobs_url(self) -> str:
        """Where the heads' files lie."""
        return self.blobs or str(self.state / "blobs")


def hidden(name: str) -> Literal["value", "credentials", "json"] | None:
    """What of a setting must not be shown, by its mark."""
    marks = [mark for mark in Settings.model_fields[name].metadata if isinstance(mark, Hide)]
    return marks[0].what if marks else None


def shown(name: str, value: Any) -> Any:
    """A setting's value as it may be shown: plain, without credentials, or as "set"."""
    what = hidden(name)
    if what is None or value is None:
        return value
    if what == "json":
        return "set" if str(value).lstrip().startswith("{") else value
    return "set" if what == "value" else without_credentials(str(value))


def without_credentials(url: str) -> str:
    """A URL without user, password and query; anything else as it is."""
    # To the last @: a password may hold one, and showing too little is the safe way to be wrong.
    bare = re.sub(r"://.*@", "://***@", url)
    return re.sub(r"(://[^?]*)\?.*", r"\1?***", bare)
