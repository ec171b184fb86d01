"""Every knob, once: a frozen object that is passed in, filled from SPARSERM_… variables."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What a user may set; `sparserm serve --help` and docs/settings.md list the same fields."""

    model_config = SettingsConfigDict(env_prefix="SPARSERM_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on; loopback by default.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="Comma-separated keys, one of which a request must carry; admin=KEY and metrics=KEY open "
        "more and less.",
    )
    api_keys_file: Path | None = Field(
        None, description="File of hashed keys (`sparserm keys new`), read again when it changes."
    )
    allow_no_keys: bool = Field(
        default=False, description="Listen beyond loopback although there are no keys."
    )
    models_dir: Path = Field(Path("models"), description="Folder that holds the reward models.")
    models: str = Field("", description="Comma-separated names to serve; empty serves every one found.")
    default_model: str = Field("", description="Model used when a request names none; empty: the first.")
    dialects: str = Field(
        "all", description="Comma-separated dialects to speak beside the native API; empty: none."
    )
    templated_text_mode: Literal["retemplate", "split", "as-is"] = Field(
        "retemplate",
        description="Text from a trainer's template: recognise its turns, split by its prompt, or neither.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/sparserm"), description="Where fetched and converted backbones are kept."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of products. auto: bfloat16 on a GPU; on a CPU float32, but for serving if "
        "bfloat16 is measured faster and moves no probe's reward by more than .05.",
    )
    threads: int = Field(0, ge=0, description="Compute threads on a CPU; 0 uses every core.")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that serve: each on a GPU of its own, or with its share of the threads.",
    )
    max_tokens: int = Field(2048, ge=16, description="Longest item in tokens; older prompt text is cut.")
    max_items: int = Field(16_384, ge=1, description="Most responses in one request.")
    max_text_chars: int = Field(1_000_000, ge=1, description="Longest single text in characters.")
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body in bytes.")
    max_buffered_bytes: int = Field(
        512 * 2**20, ge=1024, description="Request bodies held in memory together before 429 is answered."
    )
    client_timeout_s: int = Field(
        30, ge=1, description="Seconds a client may take to send its head, each part of its body, or to read."
    )
    request_timeout_s: float = Field(
        110.0, gt=0, description="Seconds a request may take, if it does not say X-SparseRM-Timeout."
    )
    device_timeout_s: float = Field(
        120.0, gt=0, description="Seconds after which a device that does not answer is given up."
    )
    max_batch_tokens: int = Field(
        0,
        ge=0,
        description="New tokens one forward pass takes at most; 0: what is timed best at the start.",
    )
    concurrent_batches: int = Field(
        0,
        ge=0,
        le=64,
        description="Passes side by side when many wait, each on its share of the CPU threads; "
        "0: two where there are two threads, else one.",
    )
    prefix_cache_mib: int = Field(
        128, ge=0, description="Memory for prompts seen lately, so that they are not read again; 0: none."
    )
    max_queued_tokens: int = Field(
        4_000_000, ge=1, description="Tokens promised at most, before 429 is answered."
    )
    drain_timeout_s: int = Field(30, ge=0, description="Seconds granted to requests in flight at shutdown.")
    otlp_endpoint: str = Field(
        "", description="Address of an OpenTelemetry collector (OTLP over HTTP); empty: no traces."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe message that is logged."
    )

    @property
    def cache(self) -> Path:
        """The cache folder with ~ resolved."""
        return self.cache_dir.expanduser()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys in `api_keys`."""
        return tuple(key.strip() for key in self.api_keys.get_secret_value().split(",") if key.strip())

    @property
    def dialect_names(self) -> tuple[str, ...]:
        """The names in `dialects`; what "all" means, the server knows."""
        return tuple(name.strip() for name in self.dialects.split(",") if name.strip())

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names in `models`, empty when everything is to be served."""
        return tuple(name.strip() for name in self.models.split(",") if name.strip())
