"""Run a trained model in the browser: classify, segment or detect objects in pictures, the webcam or a drawing."""

import argparse
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

from mambaout_jax.cli.arguments import LOADING, image_size, integer
from mambaout_jax.errors import printable
from mambaout_jax.extras import check_installed
from mambaout_jax.process import announced, exit_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="WORKDIR",
        help="folder of a run or of imported weights; with --gradio, one or two of them",
    )
    parser.add_argument(
        "--gradio",
        action="store_true",
        help="serve a Gradio app instead, with predictions, feature maps and receptive fields; two WORKDIRs are shown "
        "side by side",
    )
    parser.add_argument(
        "--static",
        metavar="DIR",
        help="write the page and its files into a folder, for any web server, instead of serving it on this machine",
    )
    parser.add_argument(
        "--img-size",
        type=image_size,
        metavar="SIDE|HxW",
        help="size of the images that the page's model takes, in pixels (default: the model's)",
    )
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: ema (moving average) if the run has it")
    parser.add_argument(
        "--runtime",
        metavar="DIR",
        help="folder dist of npm's package onnxruntime-web (default: downloaded once, with npm, into the user's cache)",
    )
    parser.add_argument("--port", type=integer(0, 65535), metavar="N", help="default: 8000; 0 for any free one")
    parser.add_argument("--force", action="store_true", help="replace the folder of an earlier demo")


def run(args: argparse.Namespace) -> int:
    """Write the page, or serve it or the app until Ctrl-C."""
    with announced(LOADING):
        from mambaout_jax.export.errors import ExportError

    if args.gradio and (args.force or any(x is not None for x in (args.static, args.runtime, args.img_size))):
        raise ExportError("--static, --runtime, --img-size and --force belong to the page; omit them with --gradio")
    if args.force and args.static is None:
        raise ExportError("--force replaces the folder of --static; add --static DIR, or omit it")
    if args.port is not None and args.static is not None:
        raise ExportError("--port is for serving, and --static only writes a folder; omit one of them")
    if len(args.workdirs) > 1 and not args.gradio:
        raise ExportError("the page has one model; give one WORKDIR, or add --gradio to see two side by side")
    with exit_on_signals(signal.SIGTERM, signal.SIGHUP):
        return _serve_app(args) if args.gradio else _write_page(args)


def _serve_app(args: argparse.Namespace) -> NoReturn:
    check_installed("demo", "demo --gradio")
    with announced(LOADING):
        from mambaout_jax.demo.app import build_app, serving

    with announced("Loading the weights."):
        app = build_app(args.workdirs, weights=args.weights)
    with serving(app, _port(args)) as address:
        _print_address(address)
        code = _wait_for_stop()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a compilation that still runs in a thread would crash a regular exit


def _wait_for_stop() -> int:
    """Wait for Ctrl-C or a signal, and return the exit code."""
    try:
        threading.Event().wait()
    except SystemExit as stop:
        return stop.code
    except KeyboardInterrupt:
        print(file=sys.stderr)
    return 0


def _write_page(args: argparse.Namespace) -> int:
    check_installed("export", "demo")
    with announced(LOADING):
        from mambaout_jax.demo.site import serve, write_site

    [workdir] = args.workdirs
    options = {"weights": args.weights, "runtime": args.runtime, "img_size": args.img_size, "log": _log}
    if args.static is not None:
        site = write_site(workdir, args.static, force=args.force, **options)
        _log(f"written: {site}; any web server can serve it, for example: python -m http.server --directory {site}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mambaout_jax-") as folder:
        site = Path(folder) / "demo"
        with serve(site, _port(args)) as server:  # before the export, so that a port in use is found at once
            write_site(workdir, str(site), **options)
            _print_address(f"http://127.0.0.1:{server.server_port}/")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print(file=sys.stderr)
    return 0


def _port(args: argparse.Namespace) -> int:
    return 8000 if args.port is None else args.port


def _print_address(address: str) -> None:
    _log(f"open {address} in a browser; stop with Ctrl-C")


def _log(sentence: str) -> None:
    print(printable(sentence), flush=True)
