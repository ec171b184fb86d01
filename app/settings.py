"""All settings of the server: one frozen object, read from SPARSERM_… environment variables and passed in."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of the server; `sparserm serve --help` and docs/settings.md list the same fields."""

    model_config = SettingsConfigDict(env_prefix="SPARSERM_", frozen=True, extra="forbid")

    host: str = Field(
        "127.0.0.1", description="Address to listen on; only this machine can connect by default."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free port.")
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="Comma-separated API keys; if set, every request must carry one. A plain key may score, "
        "admin=KEY may also use the admin routes, metrics=KEY may only read the metrics.",
    )
    api_keys_file: Path | None = Field(
        None, description="File of hashed API keys (see `sparserm keys new`); reloaded when it changes."
    )
    allow_no_keys: bool = Field(
        default=False, description="Allow listening on a non-loopback address without API keys."
    )
    models_dir: Path = Field(Path("models"), description="Folder with the reward models.")
    models: str = Field(
        "", description="Comma-separated names of the models to serve; empty: all in the folder."
    )
    default_model: str = Field("", description="For requests that name none; empty: as in serving.toml.")
    dialects: str = Field(
        "all", description="Comma-separated API dialects to serve besides the native API; empty: none."
    )
    templated_text_mode: Literal["retemplate", "split", "as-is"] = Field(
        "retemplate",
        description="How to treat text already rendered by a chat template. retemplate: parse its turns and "
        "apply the backbone's template; split: split it into prompt and response; as-is: keep it unchanged.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/sparserm"), description="Folder for downloaded and converted backbones."
    )
    device: str = Field("auto", description="Device to compute on: auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of matrix products. auto: bfloat16 on a GPU, float32 on a CPU; a CPU server "
        "uses bfloat16 if it is measured faster and changes no probe's reward by more than 0.05.",
    )
    threads: int = Field(0, ge=0, description="Compute threads on a CPU; 0: one per core.")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Server processes, each with its own GPU or an equal share of the CPU threads.",
    )
    max_tokens: int = Field(
        2048, ge=16, description="Maximum item length in tokens; the oldest prompt text is dropped."
    )
    max_items: int = Field(16_384, ge=1, description="Maximum number of responses in one request.")
    max_text_chars: int = Field(1_000_000, ge=1, description="Maximum length of a single text in characters.")
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Maximum size of a request body in bytes.")
    max_buffered_bytes: int = Field(
        512 * 2**20, ge=1024, description="Maximum bytes of all request bodies in memory; beyond it: 429."
    )
    client_timeout_s: int = Field(
        30, ge=1, description="Seconds a client may take to send headers, to send a body chunk, or to read."
    )
    request_timeout_s: float = Field(
        110.0, gt=0, description="Seconds a request may take if it has no X-SparseRM-Timeout header."
    )
    device_timeout_s: float = Field(
        120.0, gt=0, description="Seconds of one forward pass after which the device counts as lost."
    )
    max_batch_tokens: int = Field(
        0,
        ge=0,
        description="Maximum new tokens in one forward pass; 0: the size measured fastest at startup.",
    )
    concurrent_batches: int = Field(
        0,
        ge=0,
        le=64,
        description="Maximum forward passes that run at the same time, each on a share of the CPU threads; "
        "0: two if there are at least two threads, else one.",
    )
    prefix_cache_mib: int = Field(
        128, ge=0, description="Memory in MiB that caches recent prompts, to avoid recomputing them; 0: off."
    )
    max_queued_tokens: int = Field(
        4_000_000, ge=1, description="Maximum tokens queued and running; beyond it: 429."
    )
    drain_timeout_s: int = Field(
        30, ge=0, description="Seconds that running requests get to finish at shutdown."
    )
    otlp_endpoint: str = Field(
        "", description="URL of an OpenTelemetry collector (OTLP over HTTP); empty: no traces."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest severity that is logged."
    )

    @property
    def cache(self) -> Path:
        """The cache folder with ~ expanded."""
        return self.cache_dir.expanduser()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys in `api_keys`."""
        return tuple(key.strip() for key in self.api_keys.get_secret_value().split(",") if key.strip())

    @property
    def dialect_names(self) -> tuple[str, ...]:
        """The names in `dialects`; the server expands "all"."""
        return tuple(name.strip() for name in self.dialects.split(",") if name.strip())

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names in `models`; empty if all models are served."""
        return tuple(name.strip() for name in self.models.split(",") if name.strip())
