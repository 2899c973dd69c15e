"""What the operator fixes: flags first, then ``REFINERY_*`` variables, then ``refinery.toml``, then these defaults."""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from service.checkpoints import EMBEDDED
from service.run_config import NAME


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="REFINERY_", toml_file="refinery.toml", extra="forbid", frozen=True)

    data: Path = Path("refinery-data")
    """Folder of the store and the datasets; one service at a time."""
    host: str = "127.0.0.1"
    port: int = Field(8700, ge=0, le=65_535)
    """0 picks a free one."""
    policy: str | None = None
    """Checkpoint folder to publish as version 1 when the data folder is new; the embedded one by default."""
    policy_name: str = Field("policy", pattern=NAME)
    engine_rows: int = Field(512, ge=1)
    """Completions that the embedded engine samples in one batch."""
    verifier_workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    verifier_seconds: float = Field(10.0, gt=0)
    """Wall clock of one check; then its worker is killed and the verdict is a timeout."""
    verifier_memory_mib: int = Field(2048, ge=256)
    """Address space of one verifier worker."""
    body_mib: int = Field(256, ge=1)
    """Largest request body."""

    @property
    def first_checkpoint(self) -> str:
        return self.policy or str(EMBEDDED)

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
