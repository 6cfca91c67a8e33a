"""Every setting of a server: flags, environment (`R2M_*`) and help text come from here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("is HOST:PORT, for example 127.0.0.1:8080 (port 0: any free one)")
    return value


Address = Annotated[str, AfterValidator(_address)]
GIB = 1 << 30


class Settings(BaseSettings):
    """What `r2m serve` takes. A flag wins over the environment, that over the default."""

    model_config = SettingsConfigDict(env_prefix="R2M_", extra="forbid", protected_namespaces=())

    model: str = Field(
        description="reward model: a folder or hub id of a sequence classifier with one label, "
        "or of a causal LM (then --head is needed)"
    )
    head: Path | None = Field(
        default=None,
        description="scoring head for a causal LM: safetensors with head.weight [1, hidden size] "
        "and maybe head.bias [1]",
    )
    state: Path = Field(
        default=Path("r2m-state"), description="folder of the embedded registry and the heads"
    )
    registry: str | None = Field(
        default=None, description="database URL instead of SQLite in --state"
    )
    blobs: str | None = Field(
        default=None, description="fsspec URL for the heads' files instead of a folder in --state"
    )
    http: Address = Field(default="127.0.0.1:8080", description="HTTP address")
    grpc: Address = Field(default="127.0.0.1:50051", description="gRPC address")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, …")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the backbone; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    max_length: int | None = Field(
        default=None, ge=1, description="tokens a text may have; default: what the model states"
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with the model"
    )
    deterministic: bool = Field(
        default=False,
        description="every sample alone and unpadded: the same reward bit for bit in whatever "
        "batch; slower",
    )
    threads: int | None = Field(
        default=None, ge=1, description="compute threads on a CPU; default: all, 1 if deterministic"
    )
    token_budget: int = Field(default=16384, ge=1, description="padded tokens of one forward pass")
    batch_items: int = Field(default=256, ge=1, description="samples of one batch")
    cache_bytes: int = Field(
        default=GIB, ge=0, description="bytes of embeddings kept for align and for other heads"
    )
    head_cache_bytes: int = Field(default=2 * GIB, ge=0, description="bytes of heads kept loaded")
    max_head_bytes: int = Field(
        default=2 * GIB, ge=1, description="bytes one head of a run may take"
    )
    max_body_bytes: int = Field(
        default=GIB, ge=1024, description="bytes of one request, on HTTP, gRPC and in a stream"
    )
    inflight_bytes: int = Field(
        default=4 * GIB, ge=1024, description="bytes of all requests in memory at once"
    )
    drain_seconds: float = Field(
        default=20.0, ge=0, description="seconds that work at hand gets at shutdown"
    )

    @property
    def registry_location(self) -> str | Path:
        """The database that holds the metadata: a URL, or SQLite's file."""
        return self.registry or self.state / "r2m.db"

    @property
    def blobs_url(self) -> str:
        """Where the heads' files lie."""
        return self.blobs or str(self.state / "blobs")
