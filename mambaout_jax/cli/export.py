"""Write the model of a run as an ONNX or a StableHLO program with its weights."""

import argparse
import signal

from mambaout_jax.cli.arguments import LOADING, image_size, integer
from mambaout_jax.errors import printable
from mambaout_jax.process import announced, exit_on_signals

ABOUT = {
    "onnx": "write an ONNX model (.onnx): images (b, c, h, w), any batch size; run by onnxruntime and others",
    "stablehlo": "write a program of jax.export (.stablehlo): images (b, h, w, c); run by JAX without this package",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for name, about in ABOUT.items():
        chosen = formats.add_parser(name, help=about, description=about)
        chosen.add_argument("workdir", metavar="WORKDIR", help="folder of a run or of imported weights")
        chosen.add_argument("--out", metavar="FILE", required=True, help="output file")
        chosen.add_argument(
            "--output",
            choices=("logits", "features", "embedding"),
            default="logits",
            help="logits (default), for segmentation those of every pixel, or the objects that a detector finds; the "
            "feature maps; or the pooled embedding",
        )
        chosen.add_argument(
            "--normalize", action="store_true", help="the program takes pixels (uint8) and normalizes them itself"
        )
        chosen.add_argument(
            "--img-size",
            type=image_size,
            metavar="SIDE|HxW",
            help="size of the images, in pixels (default: the model's)",
        )
        chosen.add_argument("--weights", choices=("ema", "raw"), help="default: ema (moving average) if the run has it")
        chosen.add_argument("--force", action="store_true", help="replace an existing file")
        if name == "stablehlo":
            chosen.add_argument(
                "--batch-size",
                type=integer(1),
                metavar="N",
                help="fixed batch size, required for the TPU kernels of scans and depthwise convolutions (default: any "
                "batch size)",
            )


def run(args: argparse.Namespace) -> int:
    """Write the program and print what was checked."""
    with announced(LOADING):
        from mambaout_jax.export.programs import export_program

    with exit_on_signals(signal.SIGTERM, signal.SIGHUP):
        export_program(
            args.workdir,
            args.out,
            kind=args.format,
            output=args.output,
            normalize=args.normalize,
            img_size=args.img_size,
            batch_size=getattr(args, "batch_size", None),
            weights=args.weights,
            force=args.force,
            log=lambda sentence: print(printable(sentence), flush=True),
        )
    return 0
