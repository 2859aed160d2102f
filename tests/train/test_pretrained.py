"""A run starts from the bit-identical weights of another, or is refused with the differences."""

import jax
import numpy as np
import pytest

from mambaout_jax.run.errors import RunError
from mambaout_jax.run.pretrained import load_pretrained_for, merge_pretrained
from mambaout_jax.weights import WeightsError
from tests.train import tiny, written_run

NAMES = tuple(f"digit {label}" for label in range(10))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    _, _, weights = written_run.write(workdir, NAMES)
    return workdir, weights


def load(workdir, names=NAMES, init_head="keep", **changes):
    labels = {"class_names": list(names)}
    config = tiny.config(**changes)
    model = config.build_task().build_model(labels)
    fresh = model.init(jax.random.key(9))
    pretrained = load_pretrained_for(workdir, model, head_task=config.task if init_head == "keep" else None)
    variables, sentence = merge_pretrained(pretrained, model, fresh, init_head=init_head, labels=labels)
    return variables, sentence, fresh


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 48])
def test_pretrained_weights_are_bit_identical_for_any_input_size(run, size):
    workdir, weights = run
    variables, sentence, fresh = load(workdir, **{"model.img_size": size})
    assert jax.tree.structure(variables) == jax.tree.structure(fresh)
    assert_same(variables, weights["ema"])
    assert sentence == f"initialized from the EMA weights of step 7 in {workdir}, with their last layer"


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [3, 10])
def test_init_head_new_initializes_only_the_last_layer(run, num_classes):
    workdir, weights = run
    variables, sentence, fresh = load(workdir, NAMES[:num_classes], init_head="new")
    assert_same(variables["params"]["head"].pop("fc"), fresh["params"]["head"]["fc"])
    backbone = jax.tree.map(lambda leaf: leaf, weights["ema"])
    del backbone["params"]["head"]["fc"]
    assert_same(variables, backbone)
    assert sentence.endswith("with a new last layer")


@pytest.mark.slow
def test_raw_weights_are_used_without_an_average(tmp_path):
    _, _, weights = written_run.write(tmp_path / "run", NAMES, **{"optim.ema_decay": None})
    variables, sentence, _ = load(tmp_path / "run")
    assert_same(variables, weights["raw"])
    assert "initialized from the weights of step 7" in sentence


def test_a_last_layer_of_other_classes_is_refused_with_the_key_to_set(run):
    with pytest.raises(
        RunError,
        match=r"last layer of .* does not match the dataset: head.fc.bias has shape \(10,\), expected \(3,\); "
        r"head.fc.weight has shape .*; set config.init_head=new",
    ):
        load(run[0], NAMES[:3])


@pytest.mark.slow
def test_a_last_layer_for_other_class_names_is_mentioned(run):
    _, sentence, _ = load(run[0], NAMES[::-1])
    assert sentence.endswith("with their last layer, which was trained for other labels")


def test_the_same_class_names_in_another_normal_form_are_the_same_labels(tmp_path):
    written_run.write(tmp_path / "run", tuple(f"é {label}" for label in range(10)))
    _, sentence, _ = load(tmp_path / "run", tuple(f"e\u0301 {label}" for label in range(10)))
    assert sentence.endswith("with their last layer")


@pytest.mark.slow
@pytest.mark.parametrize("init_head", ["keep", "new"])
def test_another_model_is_refused_with_all_differences(run, init_head):
    with pytest.raises(RunError, match="are for mambaout_femto; config") as refusal:
        load(run[0], init_head=init_head, **{"model.depths": (2, 1), "model.stem_mid_norm": False, "model.in_chans": 3})
    words = str(refusal.value)
    assert words.endswith("depths (2, 1), not (1, 1); stem_mid_norm False, not True")
    assert "init_head" not in words


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(WeightsError, match=f"{tmp_path} has no file config.json"):
        load(tmp_path)
