"""The verification of a conversion detects errors, at a precision available on every device."""

import jax
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.models import Model
from mambaout_jax.weights import LogitsCheck, WeightsError, random_images, verify
from tests.weights import pytorch


@pytest.fixture(scope="module")
def checked():
    model = pytorch.small_model()
    variables = pytorch.draw(model)
    return variables, LogitsCheck(model, variables, random_images(model, 2))


def moved(variables, path, change):
    """Return variables of which one leaf is changed."""
    return jax.tree_util.tree_map_with_path(
        lambda at, leaf: change(leaf) if jax.tree_util.keystr(at, simple=True, separator=".") == path else leaf,
        variables,
    )


def test_equal_weights_give_no_difference(checked):
    variables, check = checked
    assert check.difference(variables) == 0
    assert check.require("weights read back", variables) == "weights read back: the logits are identical"


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("params.stages.0.blocks.0.conv.weight", lambda x: x.transpose(1, 0, 2, 3)),
        ("params.stages.1.blocks.1.fc2.bias", lambda x: x[::-1]),
        ("params.head.fc.weight", lambda x: x[:, ::-1]),
        ("params.stem.norm1.weight", np.roll),
        ("params.stem.norm1.weight", lambda x: x * np.nan),
        ("params.head.fc.bias", lambda x: x + np.inf),
    ],
)
def test_one_wrong_layer_is_refused(checked, path, change):
    variables, check = checked
    change = (lambda x: np.roll(x, 1)) if change is np.roll else change
    wrong = moved(variables, path, change)
    with pytest.raises(
        WeightsError,
        match=r"^the draft: the logits differ by .* of the largest logit, where at most 0\.0001 is allowed",
    ):
        check.require("the draft", wrong)


def test_difference_is_a_share_of_the_largest_logit():
    expected = np.float32([[1, -4, 2]])
    assert verify.difference(expected + np.float32([[0, 0, 0.5]]), expected) == 0.125
    assert verify.difference(expected, 0.5 * expected) == 1
    assert verify.difference(expected * 0, expected * 0) == 0
    assert verify.difference(expected * np.nan, expected) == np.inf
    assert verify.difference(expected, expected * np.nan) == np.inf


def test_logits_of_another_number_of_classes_differ():
    assert verify.difference(np.zeros((2, 5), np.float32), np.zeros((2, 7), np.float32)) == np.inf


def test_tolerance_lets_rounding_pass_and_no_more():
    expected = np.float32([[1.0, 0.5]])
    assert verify.difference(expected + np.float32(5e-5), expected) <= verify.TOLERANCE
    assert not verify.difference(expected + np.float32(2e-4), expected) <= verify.TOLERANCE


@pytest.mark.slow
def test_float32_at_the_highest_precision_is_computed_whatever_the_model_computes_in(monkeypatch):
    seen, apply = set(), Model.apply

    def spy(self, variables, images):
        seen.add((self.options["dtype"], jax.config.jax_default_matmul_precision))
        return apply(self, variables, images)

    monkeypatch.setattr(Model, "apply", spy)
    low = mo.create_model("mambaout_femto", img_size=32, dtype="bfloat16", **pytorch.SHALLOW)
    assert LogitsCheck(low, variables := pytorch.draw(low), random_images(low, 1)).difference(variables) == 0
    assert seen == {("float32", "highest")}


def test_images_are_the_same_each_time_and_fit_the_model():
    model = pytorch.small_model(in_chans=4)
    images = random_images(model, 3)
    assert (images.shape, images.dtype) == ((3, 32, 32, 4), np.float32)
    np.testing.assert_array_equal(images, random_images(model, 3))
    assert abs(images.std() - 1) < 0.05
