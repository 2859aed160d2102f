"""PyTorch and ONNX runtimes, without JAX, for peers whose memory is measured."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def import_torch() -> Any:
    """Return torch, after which timm and transformers can be imported.

    They import torchvision, which fails without these operators if its wheel was built for another torch.
    """
    import torch

    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")
    return torch


def export_onnx(model: Any, path: Path, images: Any) -> None:
    """Write a PyTorch model that takes `images` (b, c, h, w) with PyTorch's exporter, as timm's onnx_export.py does."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the TorchScript exporter, which needs onnx, but not onnxscript
        torch.onnx.export(
            model.eval(), (images,), path, dynamo=False, opset_version=17, input_names=["images"],
            output_names=["logits"], dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip


def load_onnx(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of images that runs a model in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]
