"""Convert weights from PyTorch to a workdir or back, and compare logits."""

import argparse
import os
import signal

from mambaout_jax.cli.arguments import add_plugins
from mambaout_jax.errors import printable
from mambaout_jax.extras import check_installed
from mambaout_jax.process import exit_on_signals

EPILOG = """\
A source is a .safetensors file, a file of torch.save (.pth, .pth.tar, .ckpt, .pt, .bin), a Hugging Face folder in
timm's format, or hf-hub:ORG/NAME, with the parameter names of timm or of the original repository."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    importing = actions.add_parser("import", help="write a workdir with PyTorch weights", epilog=EPILOG)
    importing.add_argument("source", metavar="FILE_OR_ID", help="the weights")
    importing.add_argument("--out", metavar="WORKDIR", required=True, help="output folder")
    importing.add_argument("--model", metavar="NAME", help="the variant (default: from config.json or shapes)")
    _add_entry(importing)
    importing.add_argument("--task", metavar="NAME", help="task of the weights (default: that of the model)")
    add_plugins(importing)

    exporting = actions.add_parser("export", help="write the weights of a workdir for PyTorch")
    exporting.add_argument("workdir", metavar="WORKDIR", help="folder of a run or of imported weights")
    exporting.add_argument("--out", metavar="FILE_OR_DIR", required=True, help="a file, or a folder in timm's format")
    exporting.add_argument(
        "--key-format",
        metavar="NAME",
        help="key format of a file, one of the model's family (default: the first; that of timm for models in timm)",
    )
    exporting.add_argument(
        "--weights", choices=("ema", "raw"), help="default: ema, the moving average, if the run has one"
    )
    exporting.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")

    for action in (importing, exporting):
        action.add_argument("--verify", choices=("timm",), help="also compare logits with timm's model")
        action.add_argument("--force", action="store_true", help="replace the output of an earlier conversion")

    inspecting = actions.add_parser("inspect", help="describe the weights of a source", epilog=EPILOG)
    inspecting.add_argument("source", metavar="FILE_OR_ID", help="the weights")
    inspecting.add_argument("--model", metavar="NAME", help="variant to compare with (default: from the shapes)")
    _add_entry(inspecting)


def _add_entry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--entry",
        metavar="NAME",
        help="entry of a PyTorch file that contains the weights, such as model (default: the moving average, if any)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert or inspect, and print the result."""
    from mambaout_jax.weights import UnknownVariantError, WeightsError

    if args.action != "inspect":
        check_installed("train", f"convert {args.action}")
    with exit_on_signals(signal.SIGTERM, signal.SIGHUP):
        try:
            {"import": _import, "export": _export, "inspect": _inspect}[args.action](args)
        except UnknownVariantError as error:
            raise WeightsError(
                f"{error} (set --model NAME; convert inspect FILE --model NAME lists the differences)"
            ) from error
    return 0


def _import(args: argparse.Namespace) -> None:
    from mambaout_jax.export.torch import import_weights

    import_weights(
        args.source,
        args.out,
        name=args.model,
        entry=args.entry,
        task=args.task,
        plugins=args.plugin,
        verify_timm=args.verify == "timm",
        force=args.force,
        log=lambda sentence: print(printable(sentence), flush=True),
    )
    print(printable(f"imported to {args.out}; try: python -m mambaout_jax predict {args.out} IMAGE"))


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
        log=lambda sentence: print(printable(sentence), flush=True),
    )
    print(printable(f"exported to {'the folder ' if os.path.isdir(args.out) else ''}{args.out}"))


def _inspect(args: argparse.Namespace) -> None:
    from mambaout_jax.weights import inspect_checkpoint, read_checkpoint

    for key, value in inspect_checkpoint(read_checkpoint(args.source, entry=args.entry), args.model).items():
        print("\n".join(map(printable, f"{key:<12} {value}".split("\n"))))
