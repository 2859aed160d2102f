"""The sets that ImageNet models are tested on, by their TFDS names."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.prepare.builders import parse_name
from mambaout_jax.data.sources import ImageSource, open_source

# A label costs its whole record; from a bucket the time is spent waiting.
READ_THREADS = 32


class EvalSet(NamedTuple):
    """Say how a set is read and scored.

    Args:
        split: that is scored.
        subset: whether only the classes that occur in the set are ranked.
        config: of TFDS, where the name states none.
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
    """Open the split of a known set that is scored.

    Args:
        name: "dataset", "dataset/config" or "dataset/config:version".

    Raises:
        DataError: it is none of `EVAL_SETS`, or it cannot be opened.
    """
    dataset, options = parse_name(name)
    if dataset not in EVAL_SETS:
        raise DataError(f"{name!r} is no set to evaluate on; known are {', '.join(EVAL_SETS)}")
    known = EVAL_SETS[dataset]
    config = options.get("config") or known.config
    version = options.get("version")
    full_name = dataset + (f"/{config}" if config else "") + (f":{version}" if version else "")
    return open_source(full_name, known.split, data_dir)


def class_mask_of(source: ImageSource) -> np.ndarray:
    """Tell which classes a set lets a model choose from, bool (k,): all, or those that occur in it.

    The latter reads every record, and decodes no image. Records that cannot be read are left to the evaluation.
    """
    ranked = np.ones(len(source.class_names), bool)
    known = EVAL_SETS.get(source.name.partition("/")[0])
    if known is None or not known.subset:
        return ranked
    with ThreadPoolExecutor(READ_THREADS) as threads:
        occurring = set(threads.map(lambda index: _label(source, index), range(len(source)))) - {None}
    ranked[:] = False
    ranked[list(occurring)] = True
    return ranked


def _label(source: ImageSource, index: int) -> int | None:
    try:
        return source[index]["label"]
    except DataError:
        return None
