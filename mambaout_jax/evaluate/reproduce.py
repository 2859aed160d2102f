"""Evaluation of published weights, for comparison with their published accuracy."""

from collections.abc import Callable
from typing import Any

from etils import epath

from mambaout_jax.evaluate.evaluation import evaluate
from mambaout_jax.export.torch import check_import_target, import_weights
from mambaout_jax.models import create_model, find_family
from mambaout_jax.run.config import evaluation_config
from mambaout_jax.run.dataset import open_split
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import load_config
from mambaout_jax.tasks.registry import DEFAULT, get_task
from mambaout_jax.weights import WeightsError, download_checkpoint, import_torch, sha256


def reproduce(
    name: str,
    path: epath.PathLike,
    *,
    data_dir: str | None = None,
    force: bool = False,
    log: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Download the published weights of a variant, import them, and evaluate them on its dataset.

    Args:
        path: workdir for the imported weights.
        data_dir: folder of TFDS datasets; None for that of TFDS.
        force: replace a workdir of imported weights.
        log: function that prints the messages.

    Returns:
        url, sha256 and license of the file; size of the images in pixels; top1 and published_top1 in percent; count of
        images.

    Raises:
        WeightsError: the variant has no published weights or accuracy, or the download fails.
        MissingExtraError: the file requires PyTorch, which is not installed.
        RunError, DataError, TaskError: the dataset is not prepared, or the workdir is invalid.
    """
    variant, model = find_family(name).variants[name], create_model(name)
    size = variant.size
    if variant.checkpoint is None or size not in variant.top1:
        raise WeightsError(f"no weights of {name} with an accuracy at {size} px are published")
    config = evaluation_config(get_task(DEFAULT), {"name": name}, None)
    dataset = config.build_task().imported_labels(model, {"class_names": None}).dataset
    if dataset is None:
        raise RunError(f"the dataset of {name} is unknown; expected a model with the classes of a known dataset")
    config = config.replace({"data.name": dataset, "data.data_dir": data_dir})
    task = config.build_task()
    # Checked before the download.
    path = check_import_target(path, force)
    open_split(config, task, config.data.validation_split)
    checkpoint = variant.checkpoint
    if not checkpoint.url.endswith(".safetensors"):
        import_torch(checkpoint.url)
    log(f"{checkpoint.url} (license of the weights: {checkpoint.license or 'not stated'})")
    file = download_checkpoint(checkpoint)
    import_weights(str(file), path, name=name, entry=checkpoint.entry, force=force, log=log)
    scores = evaluate(load_config(path).replace({"data.data_dir": data_dir}), path)["sets"][0]["raw"]
    return {
        "url": checkpoint.url,
        "sha256": sha256(file),
        "license": checkpoint.license,
        "size": size,
        "top1": scores[task.metrics[0].key],
        "published_top1": variant.top1[size],
        "count": scores["count"],
    }
