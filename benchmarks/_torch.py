"""The import of PyTorch for peers that import torchvision; without JAX, for peers whose memory is measured."""

from typing import Any


def import_torch() -> Any:
    """Return torch, after which timm and transformers can be imported.

    They import torchvision, which fails without these operators if its wheel was built for another torch.
    """
    import torch

    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")
    return torch
