"""Shardings of weights and batches on a mesh."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from mambaout_jax import distributed
from mambaout_jax.distributed.mesh import MIN_SHARDED_SIZE, weight_sharding


@dataclass(frozen=True)
class Device:
    process_index: int
    id: int
    platform: str = "none"


def mesh_of(data, fsdp):
    return AbstractMesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def spec_of(shape, fsdp):
    return weight_sharding(mesh_of(2, fsdp), jax.ShapeDtypeStruct(shape, jnp.float32)).spec


def test_the_largest_divisible_axis_is_split():
    assert spec_of((7, 7, 1, 512), 8) == PartitionSpec(None, None, None, "fsdp")
    assert spec_of((1024, 512), 8) == PartitionSpec("fsdp")
    assert spec_of((1001, 512), 8) == PartitionSpec(None, "fsdp")


def test_small_or_indivisible_arrays_are_replicated():
    assert spec_of((MIN_SHARDED_SIZE - 8,), 8) == PartitionSpec()
    assert spec_of((MIN_SHARDED_SIZE,), 8) == PartitionSpec("fsdp")
    assert spec_of((1001, 1001), 8) == PartitionSpec()
    assert spec_of((1024, 512), 1) == PartitionSpec()


def test_devices_of_a_process_are_contiguous():
    devices = [Device(process_index=i % 2, id=i) for i in range(8)]
    mesh = distributed.make_mesh(2, devices)
    assert mesh.shape == {"data": 4, "fsdp": 2}
    assert [device.process_index for device in mesh.devices.flat] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_fsdp_must_divide_the_devices():
    devices = [Device(process_index=0, id=i) for i in range(8)]
    with pytest.raises(
        distributed.DistributedError, match="fsdp is 3; expected a divisor of the 8 devices: 1, 2, 4, 8"
    ):
        distributed.make_mesh(3, devices)
    assert distributed.make_mesh().shape == {"data": 1, "fsdp": 1}


def test_one_device_needs_no_collectives():
    weights = {"w": jnp.ones((2, 2))}
    assert distributed.replicate(weights) is weights
    with jax.set_mesh(distributed.make_mesh()):
        assert distributed.replicate(weights) is weights
