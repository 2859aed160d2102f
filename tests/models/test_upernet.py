"""UperNet's heads and whole models compute what mmsegmentation's compute, on backbones of every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax import plugins
from mambaout_jax.models import Functional, ModelError, find_family
from mambaout_jax.models.heads import upernet
from mambaout_jax.models.key_format import KeyFormat
from mambaout_jax.models.macs import count_macs
from mambaout_jax.models.registry import BUILT_IN
from mambaout_jax.ops import resize_bilinear
from mambaout_jax.tasks.segmentation.losses import pixel_cross_entropy
from mambaout_jax.weights.key_map import matching_formats, to_torch_key
from mambaout_jax.weights.state_dict import export_state_dict, load_state_dict
from tests.marks import slow_but
from tests.models import dense_golden
from tests.tasks.plain_inference import mean_probabilities, sliding_logits, whole_logits

HEAD_NAMES = {"UPerHead": "decode_head", "FCNHead": "auxiliary_head"}
HEADS = KeyFormat("heads", upernet.RULES, ignored=("**.num_batches_tracked",))


def build_head(case):
    """Return a head of a case and its variables."""
    options = case.record["kwargs"]
    name = HEAD_NAMES[options["type"]]
    common = {"classifier_std": 0.01, "drop_rate": options["dropout_ratio"], "dtype": jnp.dtype("float32")}
    args = options["in_channels"], options["channels"], options["num_classes"]
    if options["type"] == "UPerHead":
        head = upernet.UPerHead(*args, pool_scales=options["pool_scales"], **common)
    else:
        head = upernet.FCNHead(*args, **common)
    head = Functional(head)
    wanted = {kind: {name: shapes} for kind, shapes in head.shapes.items()}
    tensors = {f"{name}.{key}": value for key, value in case.state_dict.items()}
    loaded = load_state_dict(name, wanted, HEADS, tensors, {key: value.shape for key, value in tensors.items()})
    return head, {kind: values[name] for kind, values in loaded.items()}


@pytest.mark.parametrize("name", dense_golden.names("uper_head__eval*"))
def test_the_decode_head_computes_the_logits_of_the_reference(name):
    case = dense_golden.load(name)
    head, variables = build_head(case)
    maps = dense_golden.maps(case.inputs, "feat")
    for output, logits in (
        ("features", head.apply(variables, maps, method="features")),
        ("logits", head.apply(variables, maps, None)),
    ):
        case.assert_close(f"outputs/{output}", logits.transpose(0, 3, 1, 2))


@pytest.fixture
def conv_backbone(monkeypatch):
    """Load the plugin with the backbone of the reference data."""
    monkeypatch.setattr(plugins, "_loaded", {})
    plugins.load(["tests.toy.conv_backbone"])


def build_model(case):
    """Return the model of a case, and its variables by `from_torch`."""
    options = case.record["kwargs"]
    backbone, decode, auxiliary = options["backbone"], options["decode_head"], options["auxiliary_head"]
    kind = {"ConvBackbone": "conv_backbone", "MambaOutBackbone": "mambaout_femto"}[backbone["type"]]
    model = mo.create_model(
        "upernet",
        backbone=kind,
        num_classes=decode["num_classes"],
        channels=decode["channels"],
        auxiliary_channels=auxiliary["channels"],
        pool_scales=tuple(decode["pool_scales"]),
        drop_rate=decode["dropout_ratio"],
        **{name: tuple(backbone[name]) for name in ("dims", "depths") if name in backbone},
    )
    return model, mo.from_torch(model, case.state_dict)


def load_image(model, image):
    """Return a normalized image from one of a case: BGR, channels first."""
    return model.input_spec.normalize(jnp.asarray(image[::-1].transpose(1, 2, 0)[None]))


@pytest.mark.parametrize("name", dense_golden.names("segmentor__*whole*"))
@pytest.mark.usefixtures("conv_backbone")
def test_whole_images_are_segmented_as_by_the_reference(name):
    case = dense_golden.load(name)
    model, variables = build_model(case)
    image = load_image(model, case.inputs["image"])
    (height, width), padded = image.shape[1:3], case.outputs["network_logits"].shape[2:]
    canvas = jnp.pad(image, ((0, 0), (0, padded[0] - height), (0, padded[1] - width), (0, 0)))
    logits = whole_logits(model, variables, canvas)
    case.assert_close("outputs/network_logits", logits.transpose(0, 3, 1, 2))
    logits = logits[:, :height, :width]
    logits = resize_bilinear(logits, case.outputs["label"].shape)
    case.assert_close("outputs/logits", logits[0].transpose(2, 0, 1))
    np.testing.assert_array_equal(logits[0].argmax(-1), case.outputs["label"])


@pytest.mark.slow
@pytest.mark.parametrize("name", dense_golden.names("segmentor__slide*"))
@pytest.mark.usefixtures("conv_backbone")
def test_windows_are_averaged_as_by_the_reference(name):
    case = dense_golden.load(name)
    model, variables = build_model(case)
    image = load_image(model, case.inputs["image"])
    test = case.record["kwargs"]["test_cfg"]
    (crop, _), (stride, _) = test["crop_size"], test["stride"]
    logits = sliding_logits(model, variables, image, crop, stride)
    case.assert_close("outputs/network_logits", logits.transpose(0, 3, 1, 2))
    logits = resize_bilinear(logits, case.outputs["label"].shape)
    case.assert_close("outputs/logits", logits[0].transpose(2, 0, 1))
    np.testing.assert_array_equal(logits[0].argmax(-1), case.outputs["label"])


@pytest.mark.slow
@pytest.mark.usefixtures("conv_backbone")
def test_scales_and_flips_are_averaged_as_by_the_reference():
    case = dense_golden.load("segmentor__multi_scale_flip")
    model, variables = build_model(case)
    size = case.outputs["label"].shape
    passes = {}
    for scale in range(3):
        image = load_image(model, case.inputs[f"image{scale}"])
        plain, flipped = whole_logits(model, variables, image), whole_logits(model, variables, image[:, :, ::-1])
        for name, logits in (("plain", plain), ("flip", flipped[:, :, ::-1])):
            passes[f"{scale}_{name}"] = resize_bilinear(logits, size)
    for name, logits in passes.items():
        case.assert_close(f"outputs/logits_{name}", logits[0].transpose(2, 0, 1))
    probabilities = mean_probabilities(passes.values())
    case.assert_close("outputs/probabilities", probabilities[0].transpose(2, 0, 1))
    np.testing.assert_array_equal(probabilities[0].argmax(-1), case.outputs["label"])


def compare_training(case, state_dict, **tolerance):
    """Compare the recorded gradients and running statistics, by key, with those in a state dict."""
    recorded = [f"grads/{key}" for key in case.grads if key.startswith("params/")]
    recorded += [f"outputs/{key}" for key in case.outputs if key.startswith("after/") and "num_batches" not in key]
    assert len(recorded) > 3
    for name in recorded:
        case.assert_close(name, state_dict[name.split("/", 2)[2]], **tolerance)


@pytest.mark.parametrize("name", dense_golden.names("*_head__train*"))
def test_heads_train_as_the_reference(name, monkeypatch):
    """Losses, gradients and running statistics; channels are dropped where the reference dropped them."""
    case = dense_golden.load(name)
    options = case.record["kwargs"]
    head, variables = build_head(case)
    indices = options["in_index"]
    maps = dense_golden.maps(case.inputs, "feat")
    inputs = maps if isinstance(indices, list) else maps[indices]
    if "dropout_keep" in case.outputs:
        keep = case.outputs["dropout_keep"][:, None, None, :] / np.float32(1 - options["dropout_ratio"])
        monkeypatch.setattr(upernet, "channel_dropout", lambda x, rate, key: x * keep)

    def loss(params, inputs):
        def run(module, inputs):
            module.train()
            return module(inputs, None)

        logits, batch_stats = head._compute(run, {**variables, "params": params}, inputs)
        losses = options["loss_decode"]["loss_weight"] * pixel_cross_entropy(logits, jnp.asarray(case.inputs["label"]))
        return losses.mean(), (logits, batch_stats)

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, (logits, batch_stats)), (grads, input_grads) = run(variables["params"], inputs)
    case.assert_close("outputs/logits", logits.transpose(0, 3, 1, 2))
    case.assert_close("outputs/loss_ce", value)
    for name in case.grads:
        if name.startswith("inputs/"):
            index = int(name.removeprefix("inputs/feat"))
            ours = input_grads[index] if isinstance(indices, list) else input_grads
            case.assert_close(f"grads/{name}", ours.transpose(0, 3, 1, 2))
    prefix = HEAD_NAMES[options["type"]]
    trained = {"params": {prefix: grads}, "batch_stats": {prefix: batch_stats}}
    tensors = export_state_dict(prefix, trained, HEADS, trained)
    compare_training(case, {key.removeprefix(f"{prefix}."): value for key, value in tensors.items()})


@pytest.mark.slow
@pytest.mark.optimized  # without optimizations, sums round more than the tolerances allow
@pytest.mark.parametrize("name", dense_golden.names("segmentor__*loss"))
@pytest.mark.usefixtures("conv_backbone")
def test_whole_models_train_as_the_reference(name):
    case = dense_golden.load(name)
    model, variables = build_model(case)
    batch = case.outputs["batch"].transpose(0, 2, 3, 1)
    labels = case.outputs["batch_labels"].reshape(batch.shape[:3])

    def loss(params, batch):
        (decode, auxiliary), batch_stats = model.call(
            {**variables, "params": params}, "logits_with_auxiliary", batch, None, train=True
        )
        losses = pixel_cross_entropy(decode, labels).mean(), 0.4 * pixel_cross_entropy(auxiliary, labels).mean()
        return sum(losses), (losses, batch_stats)

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (total, (losses, batch_stats)), (grads, batch_grad) = run(variables["params"], batch)
    case.assert_close("outputs/loss", total)
    case.assert_close("outputs/decode.loss_ce", losses[0])
    case.assert_close("outputs/aux.loss_ce", losses[1])
    # The smallest pooled maps are one pixel of two images. Where both are nearly equal (a deviation of 0.01 in one
    # channel), batch normalization magnifies rounding 90 times in the gradients of the layers below.
    case.assert_close("grads/batch", batch_grad.transpose(0, 3, 1, 2), of_peak=3e-4)
    key_format = matching_formats(case.state_dict, prefer=model.family)[0][1]
    gradients = mo.to_torch(model, {"params": grads, "batch_stats": batch_stats}, key_format.name)
    compare_training(case, gradients, of_peak=3e-4)


@pytest.mark.parametrize("name", dense_golden.names("segmentor__*"))
@pytest.mark.usefixtures("conv_backbone")
def test_state_dicts_come_back_unchanged(name):
    case = dense_golden.load(name)
    model, variables = build_model(case)
    key_format = matching_formats(case.state_dict, prefer=model.family)[0][1]
    exported = mo.to_torch(model, variables, key_format.name)
    assert exported.keys() == case.state_dict.keys()
    for key, value in exported.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value, case.state_dict[key], err_msg=key)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 54.05), ("small", 75.99), ("base", 112.20)])
def test_models_have_the_published_number_of_parameters(size, millions):
    model = mo.create_model("upernet", backbone=f"mambaout_{size}")
    assert round(model.num_params / 1e6, 2) == millions


@pytest.mark.slow
def test_the_published_multiply_adds_are_counted():
    """MambaOut's paper, table 3: 938 G for MambaOut-Tiny at 512x2048, without the auxiliary head."""
    model = mo.create_model("upernet", backbone="mambaout_tiny")
    image = jax.ShapeDtypeStruct((1, 512, 2048, 3), jnp.float32)
    assert count_macs(model.apply, model.shapes, image) / 1e9 == pytest.approx(937.9, abs=0.1)


BACKBONES = (
    "mambaout_femto", "mamba_tiny", "deit_tiny_patch16_224", "vim_tiny", "vmamba_tiny_s1l8", "plainmamba_l1",
    "localvim_tiny", "localvmamba_tiny", "mambavision_t",
)  # fmt: skip


def test_a_backbone_of_every_family_is_tested():
    assert {find_family(name) for name in BACKBONES} == set(BUILT_IN)


@pytest.mark.parametrize(
    "name",
    [*slow_but(BACKBONES[:1], (*BACKBONES[:-3], BACKBONES[-1])), *slow_but((), BACKBONES[-3:-1], "nightly")],
)
def test_every_family_is_a_backbone(name):
    """Four maps of strides 4 to 32, logits of a quarter of the image's size, and no layer that they do not need."""
    model = mo.create_model(
        "upernet", backbone=name, img_size=(64, 64), num_classes=5, channels=8, auxiliary_channels=8
    )
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)

    def run(variables, images):
        logits = model.call(variables, "logits_with_auxiliary", images, None, train=True)[0]
        return model.features(variables, images), logits

    maps, logits = jax.eval_shape(run, model.shapes, images)
    strides, widths = zip(*((stride, width) for width, stride in model.feature_info), strict=True)
    assert strides == (4, 8, 16, 32)
    assert [x.shape for x in maps] == [
        (2, 64 // stride, 64 // stride, width) for stride, width in zip(strides, widths, strict=True)
    ]
    assert [x.shape for x in logits] == [(2, 16, 16, 5), (2, 4, 4, 5)]
    used = jax.make_jaxpr(run)(model.shapes, images).jaxpr
    paths = [path for path, _ in jax.tree.leaves_with_path(model.shapes)]
    read = {id(variable) for equation in used.eqns for variable in equation.invars}
    unread = [
        jax.tree_util.keystr(path)
        for path, variable in zip(paths, used.invars, strict=False)
        if id(variable) not in read
    ]
    assert not [path for path in unread if "cls_token" not in path]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "upernet"}, "needs a backbone"),
        ({"name": "vim_tiny", "backbone": "vim_tiny"}, "is not a head"),
        ({"name": "upernet", "backbone": "mambaout_tinny"}, "mambaout_tiny"),
        ({"name": "upernet_mambaout_tinny"}, "mambaout_tiny"),
        ({"name": "upernet_mambaout_tiny", "backbone": "vim_tiny"}, "is not a head"),
        ({"name": "upernet", "backbone": "vim_tiny", "out_indices": (3, 7)}, "2 feature maps"),
        ({"name": "upernet", "backbone": "mambaout_tiny", "num_classes": 0}, "num_classes"),
    ],
)
def test_a_wrong_head_or_backbone_is_named(arguments, words):
    with pytest.raises(ModelError, match=words):
        mo.create_model(**arguments)


@pytest.mark.parametrize(
    ("backbone", "key"), [("vmamba_tiny_s1l8", "backbone.outnorm3.weight"), ("mambaout_tiny", "backbone.norm3.weight")]
)
def test_norms_of_feature_maps_have_the_published_names(backbone, key):
    model = mo.create_model("upernet", backbone=backbone)
    for key_format in model.family.key_formats:
        assert to_torch_key(key_format, "norms.3.weight") == key


@pytest.mark.parametrize("std", [0.01, 0.25])
def test_classifiers_begin_with_the_given_spread(std):
    model = mo.create_model("upernet", backbone="mambaout_femto", num_classes=150, channels=64, classifier_std=std)
    params = model.init(jax.random.key(0))["params"]
    for head in ("decode_head", "auxiliary_head"):
        assert np.std(params[head]["conv_seg"]["weight"]) == pytest.approx(std, rel=0.05)
        assert not np.any(params[head]["conv_seg"]["bias"])
