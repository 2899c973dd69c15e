"""Stands in for SGLang's CUDA kernels, which have no CPU wheel.

With ``SGLANG_USE_CPU_ENGINE=1``, sglang 0.5.23 imports names from here and calls none of them for a plain dense
model. A call is an error, so nothing can give a wrong answer.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError(f"sgl_kernel.{name} needs a GPU")

    return missing
