"""A folder with a page that runs a model in the browser, and a server for it."""

import functools
import http.server
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mambaout_jax.demo.runtime import FILES, find_runtime
from mambaout_jax.errors import reason
from mambaout_jax.export.errors import ExportError
from mambaout_jax.export.programs import export_program
from mambaout_jax.extras import importing
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.pages.render import render
from mambaout_jax.process import commit_folder, scratch_folder
from mambaout_jax.storage import find_unknown_home

with importing("export", f"{__name__} requires onnx"):
    import onnx

PAGE = "index.html"
# The files that `write_site` writes; a folder with exactly these may be replaced.
_CONTENT = {PAGE, "demo.js", "model.onnx", *FILES}
# The outputs of programs that find objects.
DETECTION_OUTPUTS = {"boxes", "scores", "classes", "valid", "mask_logits"}


def write_site(
    workdir: str,
    out: str,
    *,
    weights: str | None = None,
    runtime: str | None = None,
    img_size: tuple[int, int] | None = None,
    force: bool = False,
    log: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Write a folder that any static web server can serve, and return its path.

    Args:
        weights: "ema" or "raw"; None for "ema" if the run has an average, else "raw".
        runtime: as in `find_runtime`.
        img_size: (height, width) of the images that the model takes; None for its own.
        force: replace the folder of an earlier demo.

    Raises:
        ExportError: the folder exists without `force` or has other files, or as in `export_program` and `find_runtime`.
    """
    target = _check_target(out, force)
    source = find_runtime(runtime, log)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target) as scratch:
            draft = scratch / "site"
            draft.mkdir()
            export_program(
                workdir,
                str(draft / "model.onnx"),
                kind="onnx",
                normalize=True,
                img_size=img_size,
                weights=weights,
                log=log,
            )
            metadata = onnx.load(draft / "model.onnx", load_external_data=False).metadata_props
            about = {entry.key: json.loads(entry.value) for entry in metadata}
            _check_page(about, {path.name for path in draft.iterdir()})
            # No </script> may end the element that contains the description.
            description = json.dumps(about).replace("<", "\\u003c")
            (draft / PAGE).write_text(
                render(__package__, "page.html.jinja", about=about, description=description), encoding="utf-8"
            )
            shutil.copyfile(Path(__file__).with_name("demo.js"), draft / "demo.js")
            for name in FILES:
                shutil.copyfile(source / name, draft / name)
            commit_folder(draft, target, replace=force)
    except OSError as error:
        raise_machine_fault(error, target, to_write=True)
        raise ExportError(f"{target} cannot be written ({reason(error)}); choose another folder") from error
    return target


def _check_page(about: dict[str, Any], files: set[str]) -> None:
    """Check that the page can show an exported model.

    Args:
        about: the description of the program.
        files: the files of the program.
    """
    outputs = about["outputs"]
    of_classes = [*outputs] == ["logits"] and len(outputs["logits"]) in (2, 4)
    if not of_classes and set(outputs) != DETECTION_OUTPUTS:
        raise ExportError(f"the page cannot show predictions of the task {about['task']!r}; use demo --gradio")
    if len(files) > 1:
        raise ExportError("the page cannot load models of more than 2 GiB; use export onnx, or demo --gradio")


def _check_target(out: str, force: bool) -> Path:
    if out == "":
        raise ExportError("--static is empty; expected a folder, such as site")
    if fault := find_unknown_home(out):
        raise ExportError(f"{out} {fault}")
    target = Path(os.path.realpath(Path(out).expanduser()))
    if not os.path.lexists(target):
        return target
    if not force:
        raise ExportError(f"{out} exists; choose another folder, or replace it with --force")
    if not target.is_dir() or {path.name for path in target.iterdir()} != _CONTENT:
        raise ExportError(f"{out} has other files than a demo, so --force does not replace it; choose another folder")
    return target


def serve(site: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of a folder for this machine; a port of 0 is any free one.

    Raises:
        ExportError: the port is taken.
    """
    handler = functools.partial(_Handler, directory=str(site))
    try:
        return _Server(("127.0.0.1", port), handler)
    except OSError as error:
        raise_machine_fault(error)
        raise ExportError(f"port {port} cannot be used ({reason(error)}); choose another --port") from error


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing for a connection that the browser has closed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 - as the base class has it
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        """Let browsers ask whether a file has changed: the next demo at this address may have another model."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *args: object) -> None:
        """Print nothing for a request."""
