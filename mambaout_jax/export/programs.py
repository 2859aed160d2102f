"""Trained models as programs for other runtimes: ONNX, and StableHLO by `jax.export`.

A program has its weights, is computed in float32, and is checked before it is written to its place: it is read back,
run on random and real images, and compared with the model.
"""

import datetime as dt
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from mambaout_jax.data.imagenet_classes import class_description
from mambaout_jax.export.errors import ExportError
from mambaout_jax.export.images import check_images
from mambaout_jax.extras import check_installed, importing
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import Model
from mambaout_jax.models.api import OUTPUTS
from mambaout_jax.process import commit_file, scratch_folder
from mambaout_jax.run.workdir import Run, exact_model, restore_run
from mambaout_jax.tasks.api import Task
from mambaout_jax.version import find_version
from mambaout_jax.weights import TOLERANCE, check_file_target, converting_file_errors, difference

Log = Callable[[str], None]
# Extensions of the files, by format.
EXTENSIONS = {"onnx": ".onnx", "stablehlo": ".stablehlo"}
# Ending of the name of a second file: the weights of a large ONNX model, the description of a StableHLO program.
COMPANIONS = {"onnx": ".data", "stablehlo": ".json"}
PLATFORMS = ("cpu", "cuda", "tpu")
INPUT = "images"
# How long later versions of JAX can read a serialized program. Reference: "Compatibility guarantees" in the section on
# export of JAX's documentation.
READABLE_DAYS = 180


class Program(NamedTuple):
    """A function of a batch of images, with what its users must know about it.

    Args:
        function: returns the outputs by name.
        shape: shape of an image; its layout is in the description.
        dtype: dtype of the images: float32 for normalized ones, uint8 for pixels.
        description: JSON values.
    """

    function: Callable[[Shaped[Array, "b ..."]], dict[str, Array]]
    shape: tuple[int, ...]
    dtype: np.dtype
    description: dict[str, Any]


def export_program(
    path: str,
    out: str,
    *,
    kind: str,
    output: str = "logits",
    normalize: bool = False,
    img_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    weights: str | None = None,
    force: bool = False,
    log: Log = lambda sentence: None,
) -> None:
    """Write the model of a workdir as a program.

    Args:
        out: a file with the extension of the format. StableHLO has its description in a second file, with the extension
            .json; ONNX in its metadata.
        kind: "onnx" or "stablehlo".
        output: "logits", "features" or "embedding".
        normalize: the program takes pixels (uint8) and normalizes them itself.
        img_size: (height, width) of the images; None for the model's own.
        batch_size: fixed number of images of a StableHLO program, with which depthwise convolutions and selective scans
            use their kernels on TPUs; None for any number.
        weights: "ema" or "raw"; None for "ema" if the run has an average, else "raw".
        force: replace existing files.
        log: function that prints the messages.

    Raises:
        ExportError: the model contains an operation that the format does not support, or the outputs differ.
        RunError, WeightsError, ModelError: the workdir, the output file or the size is invalid.
        MissingExtraError: what the format requires is not installed.
    """
    if kind not in EXTENSIONS:
        raise ExportError(f"kind is {kind!r}; expected one of {', '.join(EXTENSIONS)}")
    if batch_size is not None and (kind == "onnx" or batch_size < 1):
        raise ExportError(f"batch_size is {batch_size}; expected a positive number with stablehlo, and None with onnx")
    check_installed("export", f"export {kind}")
    target = check_file_target(out, force, (EXTENSIONS[kind],))
    companion = check_file_target(f"{target}{COMPANIONS[kind]}", force, (COMPANIONS[kind],))
    run = restore_run(path, weights)
    log(f"{path}: {run.model.name}, {run.weights} weights of step {run.step}")
    if run.license_notice:
        log(run.license_notice)
    model, variables = exact_model(run, img_size)
    channels_first = kind == "onnx"
    program = build_program(run, model, variables, output, normalize=normalize, channels_first=channels_first)
    images = _as_inputs(check_images(run.config, model, log), program, model)
    with converting_file_errors(target), scratch_folder(target) as folder:
        draft = folder / target.name
        if kind == "onnx":
            _write_onnx(draft, program)
            compute = _load_onnx(draft)
        else:
            _write_stablehlo(draft, program, batch_size)
            compute = _load_stablehlo(draft)
        log(_compare(program, compute, images, batch_size, run.task))
        size = sum(file.stat().st_size for file in folder.iterdir())
        extra = folder / companion.name
        if extra.exists():
            commit_file(extra, companion, replace=force)
        else:  # of a larger model that is replaced
            companion.unlink(missing_ok=True)
        try:
            commit_file(draft, target, replace=force)
        except OSError:
            companion.unlink(missing_ok=True)
            raise
    log(f"{target.name}: {size / 2**20:.1f} MiB")


def build_program(
    run: Run, model: Model, variables: dict[str, Any], output: str, *, normalize: bool, channels_first: bool
) -> Program:
    """Return the program of a model, and its description.

    Args:
        run: the run of the model, with its task and its labels.
        output: one of `OUTPUTS`; feature maps are called features_0, features_1 and so on.
        normalize: the images are pixels.
        channels_first: images and maps are (b, c, h, w), as in PyTorch, not (b, h, w, c).
    """
    if output not in OUTPUTS:
        raise ExportError(f"output is {output!r}; expected one of {', '.join(OUTPUTS)}")
    spec = model.input_spec

    def compute(images: Float[Array, "b h w c"]) -> dict[str, Array]:
        if output == "logits":
            return run.task.exported_outputs(model, variables, images)
        found = model.apply(variables, images, output)
        return {output: found} if output == "embedding" else {f"{output}_{i}": x for i, x in enumerate(found)}

    def function(images: Shaped[Array, "b ..."]) -> dict[str, Array]:
        images = jnp.moveaxis(images, 1, -1) if channels_first else images
        found = compute(spec.normalize(images) if normalize else images)
        maps = run.task.exported_maps if output == "logits" else tuple(found) if output == "features" else ()
        return {
            name: jnp.moveaxis(x, -1, 1) if channels_first and name in maps and x.ndim == 4 else x
            for name, x in found.items()
        }

    shape = (model.in_chans, *spec.size) if channels_first else (*spec.size, model.in_chans)
    dtype = np.dtype(np.uint8 if normalize else np.float32)
    shapes = jax.eval_shape(function, jax.ShapeDtypeStruct((1, *shape), dtype))
    names = run.class_names
    description = {
        "model": model.name,
        "task": run.task.name,
        "weights": f"{run.weights}, step {run.step}",
        "license": run.license,
        "input": {
            "name": INPUT,
            "layout": "NCHW" if channels_first else "NHWC",
            "shape": ["batch", *shape],
            "dtype": dtype.name,
            "values": "pixels, 0 to 255" if normalize else "(pixels / 255 - mean) / std",
            "mean": spec.mean,
            "std": spec.std,
            **run.task.preprocessing(model, run.labels),
        },
        "output": output,
        "outputs": {name: ["batch", *shape.shape[1:]] for name, shape in shapes.items()},
        "class_names": None if names is None else list(names),
        "class_descriptions": None if names is None else [class_description(name) or name for name in names],
        "class_colors": None if names is None else run.task.class_colors(names),
        "versions": {"mambaout_jax": find_version(), "jax": jax.__version__},
    }
    return Program(function, shape, dtype, description)


def _as_inputs(images: Float[np.ndarray, "b h w c"], program: Program, model: Model) -> np.ndarray:
    """Return normalized images as a program takes them."""
    if program.dtype == np.uint8:
        spec = model.input_spec
        pixels = 255 * (images * np.asarray(spec.std) + np.asarray(spec.mean))
        images = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    channels_first = program.description["input"]["layout"] == "NCHW"
    return np.ascontiguousarray(np.moveaxis(images, -1, 1) if channels_first else images)


def _compare(
    program: Program,
    compute: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    images: np.ndarray,
    batch_size: int | None,
    task: Task,
) -> str:
    """Compare a written program with the model, and return a sentence about the largest difference.

    Raises:
        ExportError: an output differs by more than `TOLERANCE` of its largest value.
    """
    reference = jax.jit(program.function)
    batches = [images[:1], images]
    if batch_size:  # the images are repeated to fill the last batch
        count = -(-len(images) // batch_size)
        batches = np.resize(images, (count, batch_size, *images.shape[1:]))
    largest = 0.0
    for batch in batches:
        found, expected = jax.tree.map(np.asarray, (compute(batch), reference(batch)))
        if program.description["output"] == "logits":
            found = task.align_outputs(found, expected)
        for name, value in expected.items():
            here = difference(found[name], value)
            if not here <= TOLERANCE:
                raise ExportError(
                    f"{name} of the written program differs by {here:.2g} of its largest value, where at most "
                    f"{TOLERANCE:g} is allowed; nothing was kept"
                )
            largest = max(largest, here)
    if largest == 0:
        return "read back: the outputs are identical"
    return f"read back: the outputs agree, with a largest difference of {largest:.2g} of the largest value"


def _write_onnx(path: Path, program: Program) -> None:
    from mambaout_jax.export.onnx_model import save, to_onnx

    image = jax.ShapeDtypeStruct(program.shape, program.dtype)
    proto = to_onnx(
        program.function, image, input_name=INPUT, description=f"{program.description['model']} of mambaout_jax"
    )
    save(proto, path, {key: json.dumps(value) for key, value in program.description.items()})


def _load_onnx(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    with importing("export", "export onnx requires onnxruntime"):
        import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many types
        raise_machine_fault(error, path)
        raise ExportError(f"onnxruntime cannot load the program: {' '.join(str(error).split())}") from error
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {INPUT: images}), strict=True))


def _write_stablehlo(path: Path, program: Program, batch_size: int | None) -> None:
    batch = batch_size or jax.export.symbolic_shape("b", constraints=["b >= 1"])[0]
    argument = jax.ShapeDtypeStruct((batch, *program.shape), program.dtype)
    exported = jax.export.export(jax.jit(program.function), platforms=PLATFORMS)(argument)
    path.write_bytes(exported.serialize())
    today = dt.datetime.now(tz=dt.UTC).date()
    about = program.description
    if batch_size:
        about = {
            **about,
            "input": {**about["input"], "shape": [batch_size, *about["input"]["shape"][1:]]},
            "outputs": {name: [batch_size, *shape[1:]] for name, shape in about["outputs"].items()},
        }
    description = {
        **about,
        "batch_size": batch_size,
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "readable_until": (today + dt.timedelta(days=READABLE_DAYS)).isoformat(),
    }
    path.with_name(f"{path.name}.json").write_text(json.dumps(description, indent=2) + "\n")


def _load_stablehlo(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
