"""Run the model of a run in the browser: classify or segment pictures, the webcam or a drawing."""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from mambaout_jax.cli.arguments import LOADING, integer
from mambaout_jax.errors import printable
from mambaout_jax.process import announced, exit_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("workdir", metavar="WORKDIR", help="folder of a run or of imported weights")
    parser.add_argument(
        "--static",
        metavar="DIR",
        help="write the page and its files into a folder, for any web server, instead of serving it on this machine",
    )
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: ema (moving average) if the run has it")
    parser.add_argument(
        "--runtime",
        metavar="DIR",
        help="folder dist of npm's package onnxruntime-web (default: downloaded once, with npm, into the user's cache)",
    )
    parser.add_argument("--port", type=integer(0), default=8000, metavar="N", help="default: 8000; 0 for any free one")
    parser.add_argument("--force", action="store_true", help="replace the folder of an earlier demo")


def run(args: argparse.Namespace) -> int:
    """Write the page, or serve it until Ctrl-C."""
    with announced(LOADING):
        from mambaout_jax.demo.site import serve, write_site

    def log(sentence: str) -> None:
        print(printable(sentence), flush=True)

    with exit_on_signals(signal.SIGTERM, signal.SIGHUP):
        options = {"weights": args.weights, "runtime": args.runtime, "log": log}
        if args.static is not None:
            site = write_site(args.workdir, args.static, force=args.force, **options)
            log(f"written: {site}; any web server can serve it, for example: python -m http.server --directory {site}")
            return 0
        with tempfile.TemporaryDirectory(prefix="mambaout_jax-") as folder:
            site = write_site(args.workdir, str(Path(folder) / "demo"), **options)
            with serve(site, args.port) as server:
                log(f"open http://127.0.0.1:{server.server_port}/ in a browser; stop with Ctrl-C")
                try:
                    server.serve_forever()
                except KeyboardInterrupt:
                    print(file=sys.stderr)
    return 0
