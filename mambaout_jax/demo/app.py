"""A Gradio app that shows what one or two models compute from the same picture."""

import contextlib
import functools
import html
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from mambaout_jax.demo.inspection import Inspector
from mambaout_jax.errors import UserError, reason
from mambaout_jax.export.errors import ExportError
from mambaout_jax.extras import importing
from mambaout_jax.machine import MachineError, raise_machine_fault
from mambaout_jax.pages.render import render
from mambaout_jax.words import listed

with importing("demo", f"{__name__} requires gradio"):
    import gradio as gr

MAX_MODELS = 2
# Of an uploaded picture.
MAX_FILE_SIZE = "64mb"
# Seconds after which uploaded and computed pictures are deleted.
_CACHE_SECONDS = 3600
# Methods of `Inspector` with the title of their results and a note, the fastest first.
_SECTIONS = {
    "predict": ("Prediction", ""),
    "feature_maps": ("Feature maps", "root mean square over channels, and the channels that vary most"),
    "receptive_fields": ("Effective receptive fields", "influence of each pixel on the center of the map, logarithmic"),
}


def build_app(workdirs: Sequence[str], *, weights: str | None = None) -> gr.Blocks:
    """Load one or two models and build the app, to call `launch` of.

    It sends no usage data, and needs no network.

    Args:
        workdirs: folders of runs or of imported weights, of any families and tasks.
        weights: "ema" or "raw"; None for "ema" if a run has an average, else "raw".

    Raises:
        ExportError: there are no or too many workdirs.
        RunError: a workdir has no run or no such weights.
    """
    workdirs = [workdirs] if isinstance(workdirs, str) else list(workdirs)
    if not 1 <= len(workdirs) <= MAX_MODELS:
        raise ExportError(f"the app shows one or two models, not {len(workdirs)}; give one or two workdirs")
    inspectors = [Inspector(workdir, weights) for workdir in workdirs]
    title = listed(dict.fromkeys(inspector.name for inspector in inspectors))
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_CACHE_SECONDS, _CACHE_SECONDS)) as app:
        gr.HTML(render(__package__, "app_header.html.jinja", title=title, inspectors=inspectors))
        with gr.Row():
            with gr.Column(min_width=260):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "webcam", "clipboard"],
                    height=300,
                )
                picture.preprocess = _with_message(picture.preprocess)
            with gr.Column(scale=3, min_width=320):
                _show(picture, inspectors)
    return app


@contextlib.contextmanager
def serving(app: gr.Blocks, port: int) -> Iterator[str]:
    """Serve the app on this machine in the context, without a public link; yield its address.

    Args:
        port: 0 for any free one.

    Raises:
        ExportError: the port is taken.
    """
    try:
        with socket.create_server(("127.0.0.1", port)) as probe:
            port = probe.getsockname()[1]
    except OSError as error:
        raise_machine_fault(error)
        raise ExportError(f"port {port} cannot be used ({reason(error)}); choose another --port") from error
    try:
        _, address, _ = app.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_FILE_SIZE,
        )
    except Exception as error:  # Gradio raises exceptions of no type of its own when it cannot call its own server
        raise_machine_fault(error)
        raise ExportError(
            f"the app failed to start ({reason(error)}); if http_proxy is set, set NO_PROXY=127.0.0.1,localhost as well"
        ) from error
    try:
        yield address
    finally:
        app.close(verbose=False)


def _show(picture: gr.Image, inspectors: Sequence[Inspector]) -> None:
    """Add the results of all models, which are computed one after another when the picture changes."""

    def compute(method: str, path: str | None) -> str:
        if path is None:
            return ""
        image = Path(path).read_bytes()
        title, note = _SECTIONS[method]
        columns = [getattr(inspector, method)(image) for inspector in inspectors]
        return render(__package__, "inspection.html.jinja", title=title, note=note, columns=columns)

    results = {method: gr.HTML() for method in _SECTIONS}
    # At once, so that no result of an earlier picture stays next to a new one.
    event = picture.change(
        lambda: [""] * len(results), None, list(results.values()), queue=False, api_visibility="private"
    ).then
    for method, result in results.items():
        event = event(
            _with_message(functools.partial(compute, method)),
            picture,
            result,
            api_name=method,
            trigger_mode="always_last",  # a picture that is opened during a computation is not skipped
            concurrency_limit=1,  # each computation uses all cores
            concurrency_id="models",
        ).success


def _with_message(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the function with its errors for users as messages on the page, instead of tracebacks on the terminal."""

    def call(value: Any) -> Any:
        try:
            return function(value)
        except UnidentifiedImageError:  # Gradio opens a file before any function gets its path
            message = "Pillow cannot decode the image (its format is unknown)"
        except (UserError, MachineError, Image.DecompressionBombError) as error:
            message = str(error)
        raise gr.Error(html.escape(message), print_exception=False)

    return call
