"""Import timm beside a CPU build of PyTorch."""

from functools import cache

import mambaout_jax as mo

# What timm has: MambaOut without its variants that have a state space model, and ViT.
TIMM_MODELS = [name for pattern in ("*mambaout*", "vit*", "deit*") for name in mo.list_models(pattern)]


@cache
def load_timm():
    """Give the modules timm and torch.

    torchvision, which timm imports, registers shapes for compiled operators that its wheel for this torch may not
    bring: they are declared first, and never called.
    """
    import torch

    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    import timm

    return timm, torch
