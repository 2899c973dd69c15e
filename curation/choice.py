"""A user's choice: frozen, strict about unknown fields, told apart by its ``kind``."""

from pydantic import BaseModel, ConfigDict


class Choice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
