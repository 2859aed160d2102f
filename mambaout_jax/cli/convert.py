"""Bring weights from PyTorch into a workdir, or take them there, and compare logits after it."""

import argparse
import os

from mambaout_jax.cli.ending import orderly_ending

EPILOG = """\
A source is a .safetensors, .pth, .pt or .bin file, a Hugging Face folder in timm's format, or hf-hub:ORG/NAME; the
names in it may be timm's or the original repository's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    take = actions.add_parser("import", help="make a workdir of PyTorch weights", epilog=EPILOG)
    take.add_argument("source", metavar="FILE_OR_ID", help="where the weights are")
    take.add_argument("--out", metavar="WORKDIR", required=True, help="folder to make")
    take.add_argument("--model", metavar="NAME", help="the variant (default: told by config.json or the shapes)")

    give = actions.add_parser("export", help="write the weights of a workdir for PyTorch")
    give.add_argument("workdir", metavar="WORKDIR", help="folder of a run, or of imported weights")
    give.add_argument("--out", metavar="FILE_OR_DIR", required=True, help="a file, or a folder as timm takes it")
    give.add_argument("--dialect", choices=("timm", "mambaout"), default="timm", help="whose names (default: timm)")
    give.add_argument("--weights", choices=("ema", "raw"), help="default: ema, the moving average, if one was kept")
    give.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")

    for action in (take, give):
        action.add_argument("--verify", choices=("timm",), help="compare with a live timm too")
        action.add_argument("--force", action="store_true", help="replace what an earlier conversion wrote")

    look = actions.add_parser("inspect", help="tell what a source holds", epilog=EPILOG)
    look.add_argument("source", metavar="FILE_OR_ID", help="where the weights are")
    look.add_argument("--model", metavar="NAME", help="the variant to compare with (default: the one they are of)")


def run(args: argparse.Namespace) -> int:
    """Convert or inspect, and say what was found."""
    with orderly_ending():
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
        dialect=args.dialect,
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
