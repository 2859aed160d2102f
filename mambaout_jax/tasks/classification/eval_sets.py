"""Test sets for ImageNet models, by their TFDS names."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from mambaout_jax.data import DataError
from mambaout_jax.data.names import join_name, parse_name
from mambaout_jax.tasks.classification.source import ImageSource, open_source

# The whole record must be read for its label; reads from a bucket are bound by latency.
READ_THREADS = 32


class EvalSet(NamedTuple):
    """How a test set is read and scored.

    Args:
        split: the split that is scored.
        subset: whether predictions are restricted to the classes that occur in the set.
        config: the default TFDS config.
    """

    split: str
    subset: bool = False
    config: str | None = None


EVAL_SETS: Mapping[str, EvalSet] = MappingProxyType(
    {
        "imagenet2012": EvalSet("validation"),
        # The variant for which papers report accuracies on V2.
        # Reference: Recht et al., Do ImageNet Classifiers Generalize to ImageNet?, 2019.
        "imagenet_v2": EvalSet("test", config="matched-frequency"),
        "imagenet2012_real": EvalSet("validation"),
        # Both have images of 200 of the 1,000 classes; accuracy is computed among these.
        # References: Hendrycks et al., Natural Adversarial Examples, 2021; The Many Faces of Robustness, 2021.
        "imagenet_a": EvalSet("test", subset=True),
        "imagenet_r": EvalSet("test", subset=True),
        "imagenet_sketch": EvalSet("test"),
    }
)


def find_eval_set(name: str) -> tuple[str, str]:
    """Return the full name of a known test set, and the split that is scored.

    Args:
        name: "dataset", "dataset/config" or "dataset/config:version".

    Raises:
        DataError: the set is not one of `EVAL_SETS`.
    """
    dataset, options = parse_name(name)
    if dataset not in EVAL_SETS:
        raise DataError(f"config.data.eval_sets has {name!r}; expected names from {', '.join(EVAL_SETS)}")
    known = EVAL_SETS[dataset]
    return join_name(dataset, {"config": known.config, **options}), known.split


def open_eval_set(name: str, data_dir: str | None = None) -> ImageSource:
    """Open the scored split of a known test set.

    Raises:
        DataError: the set is not one of `EVAL_SETS`, or cannot be opened.
    """
    return open_source(*find_eval_set(name), data_dir)


def class_mask(source: ImageSource) -> np.ndarray:
    """Compute the mask of the classes that predictions are restricted to, bool (k,).

    It is true for all classes, or for those that occur in the set. The latter reads every record without decoding the
    images. Unreadable records are ignored here, because the evaluation reports them.
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
