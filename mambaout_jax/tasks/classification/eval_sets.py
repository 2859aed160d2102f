"""The test sets that ImageNet models are evaluated on, by their TFDS names."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from mambaout_jax.data import DataError
from mambaout_jax.data.names import join_name, parse_name
from mambaout_jax.tasks.classification.source import ImageSource, open_source

# A label costs its whole record; from a bucket, reading is mostly waiting.
READ_THREADS = 32


class EvalSet(NamedTuple):
    """How a test set is read and scored.

    Args:
        split: the split that is scored.
        subset: whether models choose only among the classes that occur in the set.
        config: the TFDS config, where the name states none.
    """

    split: str
    subset: bool = False
    config: str | None = None


EVAL_SETS: Mapping[str, EvalSet] = MappingProxyType(
    {
        "imagenet2012": EvalSet("validation"),
        # The variant that accuracies on V2 are stated for.
        # Reference: Recht et al., Do ImageNet Classifiers Generalize to ImageNet?, 2019.
        "imagenet_v2": EvalSet("test", config="matched-frequency"),
        "imagenet2012_real": EvalSet("validation"),
        # Both have images of 200 of the 1,000 classes, and accuracy is that among these.
        # References: Hendrycks et al., Natural Adversarial Examples, 2021; The Many Faces of Robustness, 2021.
        "imagenet_a": EvalSet("test", subset=True),
        "imagenet_r": EvalSet("test", subset=True),
        "imagenet_sketch": EvalSet("test"),
    }
)


def open_eval_set(name: str, data_dir: str | None = None) -> ImageSource:
    """Open the split of a known test set that is scored.

    Args:
        name: "dataset", "dataset/config" or "dataset/config:version".

    Raises:
        DataError: the set is not one of `EVAL_SETS`, or cannot be opened.
    """
    dataset, options = parse_name(name)
    if dataset not in EVAL_SETS:
        raise DataError(f"{name!r} is not a set to evaluate on; expected one of {', '.join(EVAL_SETS)}")
    known = EVAL_SETS[dataset]
    return open_source(join_name(dataset, {"config": known.config, **options}), known.split, data_dir)


def class_mask(source: ImageSource) -> np.ndarray:
    """Compute which classes a model may choose from, bool (k,): all, or those that occur in the set.

    The latter reads every record, and decodes no image. Records that cannot be read are left to the evaluation.
    """
    known = EVAL_SETS.get(source.name.partition("/")[0])
    if known is None or not known.subset:
        return np.ones(len(source.class_names), bool)
    with ThreadPoolExecutor(READ_THREADS) as threads:
        occurring = set(threads.map(lambda index: _label(source, index), range(len(source)))) - {None}
    mask = np.zeros(len(source.class_names), bool)
    mask[list(occurring)] = True
    return mask


def _label(source: ImageSource, index: int) -> int | None:
    try:
        return source[index]["label"]
    except DataError:
        return None
