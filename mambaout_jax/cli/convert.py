"""Convert weights from PyTorch to a workdir or back, and compare logits."""

import argparse
import os
import signal

from mambaout_jax.process import exiting_on

EPILOG = """\
A source is a .safetensors, .pth, .pt or .bin file, a Hugging Face folder in timm's format, or hf-hub:ORG/NAME; the
names in it may be those of timm or of the original repository."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    importing = actions.add_parser("import", help="make a workdir of PyTorch weights", epilog=EPILOG)
    importing.add_argument("source", metavar="FILE_OR_ID", help="of the weights")
    importing.add_argument("--out", metavar="WORKDIR", required=True, help="folder to make")
    importing.add_argument("--model", metavar="NAME", help="the variant (default: by config.json or the shapes)")

    exporting = actions.add_parser("export", help="write the weights of a workdir for PyTorch")
    exporting.add_argument("workdir", metavar="WORKDIR", help="folder of a run, or of imported weights")
    exporting.add_argument("--out", metavar="FILE_OR_DIR", required=True, help="a file, or a folder as timm takes it")
    exporting.add_argument(
        "--key-format",
        metavar="NAME",
        help="whose names a file has: timm, or another format of the model's family (default: the family's first, "
        "timm's for models that timm has)",
    )
    exporting.add_argument(
        "--weights", choices=("ema", "raw"), help="default: ema, the moving average, if there is one"
    )
    exporting.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")

    for action in (importing, exporting):
        action.add_argument("--verify", choices=("timm",), help="compare with a live timm too")
        action.add_argument("--force", action="store_true", help="replace what an earlier conversion wrote")

    inspecting = actions.add_parser("inspect", help="describe the weights of a source", epilog=EPILOG)
    inspecting.add_argument("source", metavar="FILE_OR_ID", help="of the weights")
    inspecting.add_argument("--model", metavar="NAME", help="variant to compare with (default: the one that fits)")


def run(args: argparse.Namespace) -> int:
    """Convert or inspect, and print the result."""
    with exiting_on(signal.SIGTERM, signal.SIGHUP):
        {"import": _import, "export": _export, "inspect": _inspect}[args.action](args)
    return 0


def _import(args: argparse.Namespace) -> None:
    from mambaout_jax.export.torch import import_weights

    import_weights(
        args.source,
        args.out,
        name=args.model,
        verify_timm=args.verify == "timm",
        force=args.force,
        say=lambda sentence: print(sentence, flush=True),
    )
    print(f"imported to {args.out}; try: python -m mambaout_jax predict {args.out} IMAGE")


def _export(args: argparse.Namespace) -> None:
    from mambaout_jax.export.torch import export_weights

    export_weights(
        args.workdir,
        args.out,
        key_format=args.key_format,
        weights=args.weights,
        dtype=args.dtype,
        verify_timm=args.verify == "timm",
        force=args.force,
        say=lambda sentence: print(sentence, flush=True),
    )
    print(f"exported to {'the folder ' if os.path.isdir(args.out) else ''}{args.out}")


def _inspect(args: argparse.Namespace) -> None:
    from mambaout_jax.weights import inspect_checkpoint, read_checkpoint

    for key, value in inspect_checkpoint(read_checkpoint(args.source), args.model).items():
        print(f"{key:<12} {value}")
