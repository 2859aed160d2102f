"""Training agrees with PyTorch: from the same weights and on the same batches, AdamW gives the same losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mambaout_jax as mo
from mambaout_jax.models import Functional, MambaBlock
from mambaout_jax.train.optimizer import adamw, warmup_cosine
from mambaout_jax.weights import mamba_block_from_torch
from tests.timm import load_timm

pytestmark = pytest.mark.torch

# The decay is large, so that parameters with a wrong one are seen.
STEPS, CLASSES, WEIGHT_DECAY = 10, 5, 0.5
SCHEDULE = warmup_cosine(
    learning_rate=2e-2, num_epochs=STEPS, steps_per_epoch=1, warmup_learning_rate=1e-3, warmup_epochs=3
)
MODELS = [
    ("mambaout_femto", {"depths": (1, 1), "dims": (16, 24)}),
    ("mambaout_base_wide_rw", {"depths": (1, 1), "dims": (16, 24)}),
    ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 32}),
]


def batches(*shape):
    """Draw two batches of inputs and labels, and return one for every step, in turn."""
    rng = np.random.default_rng(0)
    two = [
        (rng.normal(size=(8, *shape)).astype(np.float32), rng.integers(0, CLASSES, 8).astype(np.int32))
        for _ in range(2)
    ]
    return [two[step % 2] for step in range(STEPS)]


def move(torch, module):
    """Move every parameter from its initial value, which for some is 0 or so small that the rest hides them."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def our_losses(logits, params, no_decay, data):
    """Train `logits(params, inputs)` from `params`, and return the loss of each step."""
    optimizer = adamw(SCHEDULE, weight_decay=WEIGHT_DECAY, no_decay=no_decay)

    @jax.jit
    def step(params, state, inputs, labels):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, inputs), labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    with jax.default_matmul_precision("highest"):
        for inputs, labels in data:
            params, state, value = step(params, state, inputs, labels)
            losses.append(float(value))
    return losses


def their_losses(torch, module, groups, data):
    """Train a module of PyTorch with AdamW on groups of its parameters, and return the loss of each step."""
    module.train()
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for step, (inputs, labels) in enumerate(data):
        for group in optimizer.param_groups:
            group["lr"] = float(SCHEDULE(jnp.int32(step)))
        loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(inputs)), torch.from_numpy(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_ten_steps_give_the_losses_of_timm(name, options):
    timm, torch = load_timm()
    from timm.optim import param_groups_weight_decay

    theirs = timm.create_model(name, num_classes=CLASSES, **options)
    move(torch, theirs)
    ours = mo.create_model(name, num_classes=CLASSES, **{"img_size": 32, **options})
    variables, data = mo.from_torch(ours, theirs.state_dict()), batches(32, 32, 3)

    def logits(params, images):
        return ours.apply_train({**variables, "params": params}, images)[0]

    losses = our_losses(logits, variables["params"], ours.no_decay, data)
    spared = getattr(theirs, "no_weight_decay", set)()
    groups = param_groups_weight_decay(theirs, WEIGHT_DECAY, no_weight_decay_list=spared)
    expected = their_losses(torch, theirs, groups, [(images.transpose(0, 3, 1, 2), labels) for images, labels in data])
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_ten_steps_give_the_losses_of_the_mamba_block_of_transformers():
    _, torch = load_timm()  # transformers imports torchvision, too
    from timm.optim import param_groups_weight_decay
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = MambaMixer(MambaConfig(hidden_size=24, state_size=16), layer_idx=0)
            self.head = torch.nn.Linear(24, CLASSES)

        def forward(self, x):
            return self.head(self.mixer(x).mean(1))

    theirs = Classifier()
    move(torch, theirs)
    block = Functional(MambaBlock(24))
    state_dict = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
    of_mixer = {key.removeprefix("mixer."): value for key, value in state_dict.items() if key.startswith("mixer.")}
    params = {
        "mixer": mamba_block_from_torch(block, of_mixer)["params"],
        "head": {"weight": state_dict["head.weight"].T, "bias": state_dict["head.bias"]},
    }
    data = batches(16, 24)

    def logits(params, x):
        return (
            block.apply({"params": params["mixer"]}, x).mean(1) @ params["head"]["weight"]
            + params["head"]["bias"][None]
        )

    losses = our_losses(logits, params, frozenset(("mixer", *path) for path in block.no_decay), data)
    groups = param_groups_weight_decay(theirs, WEIGHT_DECAY, no_weight_decay_list=["mixer.A_log"])
    expected = their_losses(torch, theirs, groups, data)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
