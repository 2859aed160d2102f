"""ImageNet's test sets are read in the layout of TFDS."""

import pytest
import tensorflow_datasets as tfds

from mambaout_jax.data import DataError
from mambaout_jax.tasks.classification.eval_sets import EVAL_SETS, class_mask, open_eval_set
from mambaout_jax.tasks.classification.source import LABEL_FEATURES
from tests.data import small_eval_sets


@pytest.fixture(scope="module")
def sets_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    tfds.disable_progress_bar()
    small_eval_sets.write("imagenet2012", folder, [5])
    small_eval_sets.write("imagenet_v2", folder, [1, 2], config="matched-frequency")
    small_eval_sets.write("imagenet_v2", folder, [3], config="topimages")
    small_eval_sets.write("imagenet2012_real", folder, [[], [2], [1, 999]])
    small_eval_sets.write("imagenet_a", folder, [7, 5, 7, 999], broken=[1])
    small_eval_sets.write("imagenet_r", folder, [0, 3])
    small_eval_sets.write("imagenet_sketch", folder, [4, 5])
    return str(folder)


@pytest.mark.parametrize("name", EVAL_SETS)
def test_each_set_has_the_features_and_classes_of_tfds(name, sets_dir, tmp_path):
    builder = tfds.builder(name, data_dir=tmp_path)
    (feature,) = LABEL_FEATURES.keys() & builder.info.features.keys()
    label = builder.info.features[feature]
    source = open_eval_set(name, sets_dir)
    assert (source.max_labels > 1) == isinstance(label, tfds.features.Sequence)
    assert source.class_names == tuple(getattr(label, "feature", label).names)
    assert len(source.class_names) == 1000
    assert source.name.split("/")[1:] == ([builder.builder_config.name] if builder.builder_config else [])


def test_labels_are_those_of_the_records(sets_dir):
    assert sorted(record["label"] for record in open_eval_set("imagenet2012_real", sets_dir)) == [(), (1, 999), (2,)]
    assert sorted(record["label"] for record in open_eval_set("imagenet_sketch", sets_dir)) == [4, 5]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("imagenet_v2", [1, 2]),
        ("imagenet_v2:1.0.0", [1, 2]),
        ("imagenet_v2/topimages", [3]),
        ("imagenet_v2/topimages:1.*.*", [3]),
    ],
)
def test_v2_is_matched_frequency_unless_another_is_named(sets_dir, name, labels):
    assert sorted(record["label"] for record in open_eval_set(name, sets_dir)) == labels


def test_only_a_and_r_restrict_the_classes_to_those_that_occur(sets_dir):
    masks = {name: class_mask(open_eval_set(name, sets_dir)) for name in EVAL_SETS}
    assert {name: mask.nonzero()[0].tolist() for name, mask in masks.items() if not mask.all()} == {
        "imagenet_a": [5, 7, 999],
        "imagenet_r": [0, 3],
    }
    assert {mask.shape for mask in masks.values()} == {(1000,)}


def test_an_unknown_set_is_refused_with_the_known_ones(sets_dir):
    known = ", ".join(EVAL_SETS)
    with pytest.raises(DataError, match=f"config.data.eval_sets has 'imagenette'; expected names from {known}"):
        open_eval_set("imagenette", sets_dir)


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("imagenet_a", "imagenet_a"),
        ("imagenet_v2", "imagenet_v2/matched-frequency"),
        ("imagenet_v2/topimages:2.0.0", "imagenet_v2/topimages:2.0.0"),
    ],
)
def test_an_unprepared_set_is_named_with_the_command(tmp_path, name, full):
    with pytest.raises(DataError, match=f"'{full}' is not prepared in .*; run: .* prepare {full} --data-dir"):
        open_eval_set(name, str(tmp_path))
