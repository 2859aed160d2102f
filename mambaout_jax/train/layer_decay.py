"""Layer-wise decay of the learning rate, for fine-tuning."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mambaout_jax.models import Model, create_model
from mambaout_jax.models.api import ParamPath


def layer_scales(model: Model, decay: float) -> Any:
    """Return the factor of the learning rate of each parameter, decay ** (layers above its own).

    The first layer has what is used before the first block, such as the stem and position embeddings; each block is a
    layer, and so is the downsampling between two stages; the last layer has all heads, with everything outside of the
    backbone of a model that has one, and what comes after the last block. Layers are in the order in which the model
    uses them.

    Returns:
        A float for each parameter, in nested dicts like `variables["params"]`.

    Reference: Bao et al., BEiT: BERT Pre-Training of Image Transformers, 2021.
    """
    first_uses = _first_uses(model)
    blocks: dict[ParamPath, float] = {}
    for path, use in first_uses.items():
        if (block := _block_of(path, model)) is not None:
            blocks[block] = min(use, blocks.get(block, math.inf))
    order = {block: 1 + index for index, block in enumerate(sorted(blocks, key=blocks.get))}
    last, start = len(order) + 1, min(blocks.values(), default=math.inf)

    def scale(path: tuple[Any, ...], _: Any) -> float:
        path = tuple(entry.key for entry in path)
        block = _block_of(path, model)
        layer = order[block] if block is not None else 0 if _before(path, start, first_uses, model) else last
        return decay ** (last - layer)

    return jax.tree.map_with_path(scale, model.shapes["params"])


def scale_by_layer(scales: Any) -> optax.GradientTransformation:
    """Return a transformation that multiplies the update of each parameter by its factor, after everything else."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda update, scale: scale * update, updates, scales))


def _before(path: ParamPath, start: float, first_uses: dict[ParamPath, float], model: Model) -> bool:
    return first_uses[path] < start and not _in_head(path, model)


def _in_head(path: ParamPath, model: Model) -> bool:
    """Return whether a parameter is of a head, or outside of the backbone of a model that has one."""
    return path[0] in model.head_modules or (model.family.backbone is not None and path[0] != "backbone")


def _block_of(path: ParamPath, model: Model) -> ParamPath | None:
    """Return the part of a path that names its block; None outside of blocks."""
    numbers = [index for index, key in enumerate(path) if isinstance(key, int)]
    if _in_head(path, model) or not numbers:
        return None
    # The number after "blocks", as in ("stages", 2, "blocks", 0), or else the first one.
    end = next((index for index in numbers if path[index - 1] == "blocks"), numbers[0])
    return path[: end + 1]


def _first_uses(model: Model) -> dict[ParamPath, float]:
    """Return the index of the equation of the forward pass that first reads each parameter; infinite if none does."""
    options = {**model.options, "img_size": model.input_spec.size}
    plain = create_model(model.name, **{**options, "scan_blocks": False} if "scan_blocks" in options else options)
    image = jax.ShapeDtypeStruct((1, *model.input_spec.size, model.in_chans), jnp.float32)
    shapes = plain.shapes
    jaxpr = jax.make_jaxpr(
        lambda params, image: plain.apply({"params": params, "batch_stats": _zeros(shapes["batch_stats"])}, image)
    )(shapes["params"], image).jaxpr
    uses: dict[int, int] = {}
    for index, equation in enumerate(jaxpr.eqns):
        for variable in equation.invars:
            uses.setdefault(id(variable), index)
    paths = [tuple(entry.key for entry in path) for path, _ in jax.tree.leaves_with_path(shapes["params"])]
    return {path: uses.get(id(variable), math.inf) for path, variable in zip(paths, jaxpr.invars, strict=False)}


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
