"""What the operator fixes: flags first, then ``REFINERY_*`` variables, then ``refinery.toml``, then these defaults."""

import os
from enum import StrEnum, auto
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from service.checkpoints import EMBEDDED
from service.engines.addresses import WorkerSpec
from service.logs import LogFormat
from service.run_config import NAME
from service.verifiers.declared import Declared


class EngineChoice(StrEnum):
    TRANSFORMERS = auto()
    """The embedded engine."""
    VLLM = auto()
    SGLANG = auto()


class ReloadMode(StrEnum):
    """What happens to running requests when new weights are published."""

    WAIT = auto()
    """They finish first: every completion is of one version."""
    IN_FLIGHT = auto()
    """They go on under the new weights where the server labels each token with its version (SGLang)."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="REFINERY_", toml_file="refinery.toml", extra="forbid", frozen=True)

    data: Path = Path("refinery-data")
    """Folder of the store and the datasets; one service at a time."""
    store_memory_mib: int | None = Field(None, ge=512)
    """What the store may hold in memory, beside what it gives away; by default four fifths of the machine's. It reads
    2,048 rollouts at a time with each core, so those of 16,000 tokens need 1,024."""
    host: str = "127.0.0.1"
    port: int = Field(8700, ge=0, le=65_535)
    """0 picks a free one."""
    policy: str | None = None
    """Checkpoint folder or Hub id to publish as version 1 when the data folder is new; the embedded one by default."""
    checkpoint_root: tuple[Path, ...] = ()
    """Folders in which who has a key may name checkpoints to publish, beside the data folder. Without keys there is no
    such limit."""
    policy_name: str = Field("policy", pattern=NAME)
    engine: EngineChoice = EngineChoice.TRANSFORMERS
    """What samples: this process, or a server that the service starts."""
    engine_python: Path | None = None
    """Interpreter of the launched engine's environment; by default the one that ``make engines`` built."""
    engine_image: str | None = None
    """Docker image to launch instead."""
    engine_args: tuple[str, ...] = ()
    """More arguments for the launched server; they win over ours."""
    engine_url: tuple[WorkerSpec, ...] = ()
    """Servers to attach to, beside the launched one if there is one."""
    engine_api_key: SecretStr | None = None
    """Sent to every attached server, and asked for by a launched one."""
    engine_reload: ReloadMode = ReloadMode.WAIT
    engine_request_seconds: float = Field(1800.0, gt=0)
    """Until a request to an engine counts as lost and its group is sampled elsewhere."""
    engine_patience_seconds: float = Field(600.0, gt=0)
    """How long groups wait for an engine to come back before they count as failed."""
    engine_rows: int = Field(512, ge=1)
    """Completions that the embedded engine samples in one batch."""
    verifier_workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    verifier_seconds: float = Field(10.0, gt=0)
    """Wall clock of one check; then its worker is killed and the verdict is a timeout. It decides where a check waits
    instead of computing; keep it far above the CPU time, or verdicts depend on how busy the machine is."""
    verifier_cpu_seconds: float = Field(2.0, gt=0)
    """CPU time of one check; then its worker is killed and the verdict is a timeout."""
    verifier_memory_mib: int = Field(2048, ge=256)
    """Address space of one verifier worker."""
    canary_seconds: float = Field(15.0, gt=0)
    """Between two trials of every verifier in use with completions whose verdict is known."""
    verifier: tuple[Declared, ...] = ()
    """Reward functions, reward models and verifier servers, beside the verifiers that are always there."""
    code_python: Path | None = None
    """Python that programs under test run with; the system's by default."""
    unsafe_local_code: bool = False
    """Run programs under test on this machine without a sandbox."""
    sql_processes: int = Field(2, ge=1)
    """Questions in SQL that are answered at once."""
    sql_seconds: float = Field(60.0, gt=0)
    """That one may take, whatever it asks for."""
    sql_memory_mib: int = Field(1024, ge=128)
    """That one may use."""
    body_mib: int = Field(256, ge=1)
    """Largest body of rows, packed or not; any other body has at most 4."""
    bodies_mib: int = Field(512, ge=1)
    """Of all request bodies at once; what comes beyond waits. What is made of them takes several times as much."""
    log_format: LogFormat = LogFormat.TEXT
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    unsafe_no_keys: bool = False
    """Serve on any address without keys: whoever reaches it may do everything. For a container, say, whose port is
    published on a loopback address only."""
    allow_host: tuple[str, ...] = ()
    """Names of this machine that clients without keys may call it by, beside localhost and IP addresses."""

    @property
    def dataset_root(self) -> Path:
        return self.data / "datasets"

    @property
    def first_checkpoint(self) -> str:
        return self.policy or str(EMBEDDED)

    @property
    def has_fleet(self) -> bool:
        """Whether engine servers sample, rather than this process."""
        return self.engine is not EngineChoice.TRANSFORMERS or bool(self.engine_url)

    @model_validator(mode="after")
    def _launch_options_go_with_a_launch(self) -> Self:
        options = (self.engine_python, self.engine_image, self.engine_args or None)
        if self.engine is EngineChoice.TRANSFORMERS and any(option is not None for option in options):
            raise ValueError("--engine-python, --engine-image and engine arguments go with --engine vllm or sglang")
        admins = [url for spec in self.engine_url for url in spec.admin_urls or (spec.url,)]
        if len(set(admins)) < len(admins):
            raise ValueError("--engine-url names a server twice: two changes of weights at once end an SGLang server")
        if self.engine_python and self.engine_image:
            raise ValueError("--engine-python and --engine-image exclude each other")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
