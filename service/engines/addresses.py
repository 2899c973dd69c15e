"""Where engine servers are, as operators write it down."""

from enum import StrEnum, auto
from typing import Annotated

from pydantic import Field, ValidationError, field_validator, model_validator

from curation.choice import Choice
from service.urls import refuse_metadata, shown

URL = r"^https?://[^\s/?#,]+(/[^\s?#,]*)?$"


class Kind(StrEnum):
    """Which dialect a server speaks."""

    VLLM = auto()
    SGLANG = auto()
    OPENAI = auto()
    """``/v1/completions`` and no control routes: its version is what the operator says."""


class WorkerSpec(Choice):
    """One worker of the fleet. As text: ``URL[,admin=URL]...[,dialect=KIND][,version=N]``."""

    url: str = Field(pattern=URL)
    """Takes generation: a server, or a router in front of several."""
    admin_urls: tuple[Annotated[str, Field(pattern=URL)], ...] = ()
    """Every server behind it, because routers do not pass control on. Empty: the URL itself."""
    dialect: Kind | None = None
    """None: found out by asking."""
    version: int | None = Field(None, ge=1)
    """For a server without control routes: the policy version that it serves, for good."""

    @field_validator("url", "admin_urls")
    @classmethod
    def _may_be_asked_and_told(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for url in [value] if isinstance(value, str) else value:
            refuse_metadata(url)
            if shown(url) != url:
                raise ValueError("it is told to whoever sees workers: the password goes into engine_api_key")
        return value

    @field_validator("url", "admin_urls")
    @classmethod
    def _no_slash_at_the_end(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return value.rstrip("/") if isinstance(value, str) else tuple(url.rstrip("/") for url in value)

    @model_validator(mode="after")
    def _version_goes_with_openai(self) -> "WorkerSpec":
        if (self.version is not None) != (self.dialect is Kind.OPENAI):
            raise ValueError("a version belongs to dialect=openai and to no other: the others are told theirs")
        return self


def parse_worker(text: str) -> WorkerSpec:
    """Raises ValueError for text that is not of the form above."""
    url, *options = text.split(",")
    pairs = [option.partition("=") for option in options]
    fields: dict[str, object] = {name: value for name, _, value in pairs if name != "admin"}
    if unknown := fields.keys() - {"dialect", "version"}:
        raise ValueError(f"{text!r}: {sorted(unknown)} is none of admin, dialect, version")
    if "version" in fields:
        fields["version"] = int(str(fields["version"]))
    if "dialect" in fields:
        fields["dialect"] = Kind(str(fields["dialect"]))
    admins = tuple(value for name, _, value in pairs if name == "admin")
    try:
        return WorkerSpec.model_validate({"url": url, "admin_urls": admins} | fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"--engine-url {text}: {where}: {first['msg']}".replace(": :", ":")) from None
