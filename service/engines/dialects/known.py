"""Every dialect, and which of them a server speaks."""

from service.engines.addresses import Kind
from service.engines.dialects.base import Dialect
from service.engines.dialects.openai import OpenAI
from service.engines.dialects.sglang import Sglang
from service.engines.dialects.vllm import Vllm
from service.engines.link import Link, Missing

DIALECTS: dict[Kind, Dialect] = {Kind.VLLM: Vllm(), Kind.SGLANG: Sglang(), Kind.OPENAI: OpenAI()}


async def recognise(admin: Link) -> Kind:
    """The dialect of a server that answers. Raises Unreachable."""
    for kind, path in ((Kind.SGLANG, "/model_info"), (Kind.VLLM, "/version")):
        try:
            if isinstance(await admin.get(path), dict):
                return kind
        except Missing:
            pass
    return Kind.OPENAI
