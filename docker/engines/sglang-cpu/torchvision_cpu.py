"""Lets torchvision import beside a CPU torch: its wheels are built for CUDA and their operators cannot load.

Imported at start-up through ``torchvision_cpu.pth``. Declares the two operators that torchvision's Python looks for,
just before it looks.
"""

import importlib.abc
import sys
from typing import Any


class _Declaring(importlib.abc.MetaPathFinder):
    library: Any = None

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _Declaring.library = library  # its operators live as long as it does


sys.meta_path.insert(0, _Declaring())
