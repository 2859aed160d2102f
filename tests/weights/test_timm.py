"""A live timm and we give the same logits from the same weights, in both directions and both key formats."""

import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.weights import LogitsCheck, WeightsError, random_images
from mambaout_jax.weights.state_dict import to_tensors
from tests.timm import TIMM_MODELS, load_timm
from tests.weights import configurations, pytorch

pytestmark = pytest.mark.torch

# Of the largest logit, in float32.
TOLERANCE = 1e-4
QUICK = ("mambaout_femto", "test_mambaout")
MORE_SIZES = {"mambaout_base": ((288, 288), (200, 256))}


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly)
        for name in TIMM_MODELS
        if "mambaout" in name
    ],
)
def test_variant_at_full_width_equals_timms_both_ways(name):
    check_both_ways(name, sizes=(None, *MORE_SIZES.get(name, ())))


@pytest.mark.parametrize("name", ["mambaout_small_rw", "mambaout_base_plus_rw"])
def test_shallow_variant_equals_timms_both_ways(name):
    check_both_ways(name, sizes=(None,), depths=(1, 2), dims=(32, 48))


def check_both_ways(name, sizes, **options):
    theirs, ours = pytorch.noisy_timm(name, **options), mo.create_model(name, **options)
    state_dict = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
    variables = mo.from_torch(ours, theirs.state_dict())
    expected = []
    for size in sizes:
        images = pytorch.random_images(ours, size)
        expected.append(pytorch.timm_logits(theirs, images))
        logits = pytorch.logits_of(ours, variables, images)
        assert pytorch.relative_difference(logits, expected[-1]) < TOLERANCE, size
        assert np.ptp(expected[-1]) > 0.1, "logits that are all the same prove nothing"
    back = mo.to_torch(ours, variables)
    pytorch.assert_equal_state_dicts(back, state_dict)
    load_strictly(theirs, back)
    if name in pytorch.ORIGINAL:
        original = mo.to_torch(ours, variables, key_format="mambaout")
        load_strictly(theirs, original)
        pytorch.assert_equal_trees(mo.from_torch(ours, original), variables)
    np.testing.assert_array_equal(pytorch.timm_logits(theirs, pytorch.random_images(ours, sizes[-1])), expected[-1])


def load_strictly(theirs, state_dict):
    """Let timm take a state dict, as it takes its own downloads, in place of zeros."""
    _, torch = load_timm()
    from timm.models.mambaout import checkpoint_filter_fn

    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    tensors = {key: torch.from_numpy(value) for key, value in state_dict.items()}
    theirs.load_state_dict(checkpoint_filter_fn(tensors, theirs), strict=True)


@pytest.mark.nightly
@settings(max_examples=10)
@given(configurations.options())
def test_any_configuration_equals_timms(options):
    theirs, ours = pytorch.noisy_timm("mambaout_femto", **options), mo.create_model("mambaout_femto", **options)
    images = pytorch.random_images(ours, (33, 40), count=2)
    expected = pytorch.timm_logits(theirs, images)
    variables = mo.from_torch(ours, theirs.state_dict())
    logits = pytorch.logits_of(ours, variables, images)
    assert np.abs(logits - expected).max() < TOLERANCE * max(np.abs(expected).max(), 0.1)
    theirs.load_state_dict({key: load_timm()[1].from_numpy(v) for key, v in mo.to_torch(ours, variables).items()})


@settings(max_examples=40)
@given(configurations.options())
def test_any_configuration_has_timms_names_and_shapes(options):
    timm, torch = load_timm()
    with torch.device("meta"):
        theirs = timm.create_model("mambaout_femto", **options)
    expected = pytorch.shapes_of(theirs.state_dict())
    assert configurations.shapes(mo.create_model("mambaout_femto", **options)) == expected


def test_bfloat16_is_rounded_as_pytorch_rounds():
    _, torch = load_timm()
    model = pytorch.small_model(num_classes=1000)
    variables = pytorch.draw(model)
    # All that lies between two neighbours of bfloat16, ties to even and to odd among them, and what overflows.
    bits = (np.arange(1000, dtype=np.uint32) * 0x1000) + 0x3F800000
    ties = np.concatenate([bits.view(np.float32)[:996], np.float32([1e-40, -0.0, 3.3e38, np.finfo(np.float32).max])])
    variables["params"]["head"]["fc"]["bias"] = ties
    full, low = (to_tensors(model, variables, dtype=dtype) for dtype in ("float32", "bfloat16"))
    for key, value in low.items():
        expected = torch.from_numpy(full[key]).to(torch.bfloat16).view(torch.int16).numpy()
        np.testing.assert_array_equal(value.view(np.int16), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_of_pytorch_are_taken_as_they_are(dtype):
    _, torch = load_timm()
    theirs = pytorch.noisy_timm("mambaout_femto", **pytorch.SHALLOW).to(getattr(torch, dtype))
    assert next(theirs.parameters()).requires_grad
    model = pytorch.small_model()
    variables = mo.from_torch(model, dict(theirs.named_parameters()))
    expected = {key: value.float().numpy() for key, value in theirs.state_dict().items()}
    pytorch.assert_equal_state_dicts(mo.to_torch(model, variables), expected)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "complex64", "float8_e4m3fn"])
def test_tensors_of_another_dtype_are_refused(dtype):
    _, torch = load_timm()
    theirs = pytorch.noisy_timm("mambaout_femto", **pytorch.SHALLOW)
    state_dict = theirs.state_dict()
    state_dict["head.fc.bias"] = state_dict["head.fc.bias"].to(getattr(torch, dtype))
    with pytest.raises(WeightsError, match=f"^head.fc.bias is {dtype}; expected float32 or bfloat16"):
        mo.from_torch(pytorch.small_model(), state_dict)


def test_what_has_no_numbers_is_refused():
    _, torch = load_timm()
    state_dict = pytorch.noisy_timm("mambaout_femto", **pytorch.SHALLOW).state_dict()
    state_dict["head.fc.bias"] = torch.empty(5, device="meta")
    with pytest.raises(WeightsError, match=r"^head\.fc\.bias .*meta"):
        mo.from_torch(pytorch.small_model(), state_dict)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "poolformer_s12"])
def test_other_models_of_timm_are_no_mambaout(name):
    timm, torch = load_timm()
    with torch.device("meta"):
        theirs = timm.create_model(name)
    with pytest.raises(WeightsError, match="match no known model; supported are MambaOut in key format timm") as error:
        mo.from_torch(pytorch.small_model(), theirs.state_dict())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key_format", ["timm", "mambaout"])
def test_the_live_timm_judges_a_file(key_format, tmp_path):
    model, other = pytorch.small_model("mambaout_tiny"), pytorch.small_model("mambaout_tiny", num_classes=4)
    variables = mo.from_torch(model, pytorch.noisy_timm("mambaout_tiny", **pytorch.SHALLOW).state_dict())
    images = random_images(model, 2)
    path = tmp_path / "weights.safetensors"
    save_file(mo.to_torch(model, variables, key_format), path)
    check = LogitsCheck(model, variables, images)
    assert check.require_timm(str(path)).startswith(f"timm {load_timm()[0].__version__}: the logits agree, ")
    with pytest.raises(WeightsError, match=r"timm .* cannot load .*weights\.safetensors: .*size mismatch for head\.fc"):
        LogitsCheck(other, pytorch.draw(other), images).require_timm(str(path))
    with pytest.raises(WeightsError, match=r"^timm .*: the logits differ by .* of the largest logit, where"):
        LogitsCheck(model, pytorch.draw(model), images).require_timm(str(path))
