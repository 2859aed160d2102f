"""A plan is computed from the estimates of the compiler."""

import importlib.util
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mambaout_jax import distributed
from mambaout_jax.models import create_model
from mambaout_jax.plan import plan as planning
from mambaout_jax.plan.chips import CHIPS, Chip
from mambaout_jax.plan.compiler import TooLargeError, chip_of, compile_for_tpu, tpu_devices
from mambaout_jax.plan.hlo import estimated_operations
from mambaout_jax.plan.plan import largest_microbatch, plan, run_time, state_bytes, throughput
from mambaout_jax.plan.program import Dataset, dataset_of, planned_program
from mambaout_jax.run.errors import RunError
from tests.train import tiny

CHIP = Chip(memory=1e9, bandwidth=1e9, peak=2e12, cycle_flops=1000, shapes=("1x1",))
DIGITS = Dataset(1437, {"num_classes": 10})
needs_compiler = [
    pytest.mark.nightly,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU's compiler, libtpu"),
]


@dataclass(frozen=True)
class Device:
    process_index: int
    id: int
    platform: str = "none"
    device_kind: str = "none"


def operation(cycles, rule="compiler"):
    return {"cycles": cycles, "operation": "f", "shape": "f32[1]", "source": "g", "rule": rule}


def test_speed_follows_from_cycles_and_clock():
    figures = throughput([operation(3e6), operation(1e6, "bytes"), *[operation(0.1e6)] * 10], CHIP, 64, 4, 10**9)
    assert figures["cycles"] == 5e6
    assert figures["cycles_by_rule"] == {"compiler": 4e6, "schedule": 0, "bytes": 1e6}
    assert figures["step_seconds"] == pytest.approx(2.5e-3)
    assert figures["images_per_second"] == pytest.approx(64 / 2.5e-3)
    # 16 images of 1 GFLOP on a chip with 2 TFLOP/s take at least 8 ms.
    assert figures["mfu"] == pytest.approx(16e9 / 2e12 / 2.5e-3)
    assert [row["cycles"] for row in figures["top"]] == [3e6, 1e6, *[0.1e6] * 8]


def test_a_schedule_takes_all_its_steps_on_all_chips():
    assert run_time(0.5, 14_400, 16) == {"steps": 14_400, "hours": 2.0, "chip_hours": 32.0}


@pytest.mark.slow
def test_flops_of_a_step_are_three_forward_passes():
    assert planning.flops_per_image(create_model("mambaout_tiny")) == pytest.approx(6 * 4470e6, rel=1e-3)


@pytest.mark.parametrize("start", [4, 8, 64, 100])
@pytest.mark.parametrize("known", [True, False])
def test_largest_batch_is_that_of_the_line_and_was_compiled(start, known):
    asked = []

    def memory_of(batch):
        asked.append(batch)
        return 100 + 7 * batch if 100 + 7 * batch <= 1000 else None

    found = largest_microbatch(memory_of, 1000, {start: 100 + 7 * start} if known else {}, start)
    assert found == (128, 100 + 7 * 128)
    assert 128 in asked
    assert len(asked) <= (2 if known else 3)


def test_largest_batch_is_checked_by_compiling():
    sizes = {8: 100, 16: 200, 64: 850, 72: 950, 80: 1100}
    assert largest_microbatch(sizes.get, 1000, {8: 100}, 8) == (72, 950)


def test_largest_batch_is_searched_below_a_double_that_does_not_fit():
    assert largest_microbatch({64: 400, 112: 900, 120: 1100}.get, 1000, {}, 64) == (112, 900)


def test_where_memory_does_not_grow_the_largest_that_was_compiled_is_found():
    assert largest_microbatch(lambda batch: 100, 1000, {8: 100}, 8) == (16, 100)


def test_where_not_even_the_smallest_batch_fits_none_is_found():
    assert largest_microbatch(lambda batch: None, 1000, {}, 64) == (0, 0)


def test_a_dataset_is_as_given_as_prepared_or_as_known():
    config, three = tiny.config(), {"num_classes": 3}
    digits = dataset_of(config)
    assert (digits.num_images, len(digits.labels["class_names"])) == (1437, 10)
    assert dataset_of(config, 7, three) == (7, three)
    assert dataset_of(config, num_images=7) == (7, digits.labels)
    config = tiny.config(**{"data.name": "imagenet2012:5.1.0"})
    imagenet = dataset_of(config)
    assert (imagenet.num_images, len(imagenet.labels["class_names"])) == (1_281_167, 1000)
    assert dataset_of(config, labels=three) == (1_281_167, three)


@pytest.mark.parametrize(("name", "split"), [("imagenet2012", "train[:10%]"), ("flowers", "train")])
def test_a_dataset_of_unknown_size_requires_its_size(name, split):
    config = tiny.config(**{"data.name": name, "data.train_split": split})
    with pytest.raises(RunError, match="--num-images and --num-classes"):
        dataset_of(config)


def test_state_is_counted_as_a_chip_keeps_it():
    config = tiny.config(**{"optim.ema_decay": 0.9})
    mesh = distributed.make_mesh(devices=jax.devices()[:1])
    model, program = planned_program(config, config.build_task(), DIGITS, mesh)
    sizes = state_bytes(program)
    params = 4 * sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
    height, width = model.input_spec.size
    assert sizes["parameters"] == sizes["ema"] == params
    assert 2 * params <= sizes["optimizer"] <= 2 * params + 16  # and its counters
    assert sizes["batch"] == 256 * (height * width * model.in_chans + 4)


def test_split_state_counts_a_part_on_each_chip():
    config = tiny.config(eval_batch_size=104, **{"optim.ema_decay": 0.9, "model.dims": (64, 128)})

    def sizes(fsdp):
        mesh = distributed.make_mesh(fsdp, [Device(process_index=0, id=i) for i in range(8)])
        return state_bytes(planned_program(config, config.build_task(), DIGITS, mesh)[1])

    whole, parts = sizes(1), sizes(8)
    assert parts["batch"] == whole["batch"]
    for name in ("parameters", "optimizer", "ema"):
        assert whole[name] / 8 < parts[name] < whole[name] / 4


@pytest.mark.parametrize("topology", ["v5e", "v5e:", "v5e:3x2", "v5e:16X16", "v5p:4x4", "v9:2x2", "v4:4x8x4"])
def test_an_unknown_topology_is_one_sentence_with_the_known_ones(topology):
    with pytest.raises(RunError, match=r"v4, v5e, v5p, v6e|2x4|2x2x2, 2x2x4"):
        chip_of(topology)


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v4:4x4x8", "v5e:16x16", "v5p:16x16x24", "v6e:1x1"])
def test_topologies_that_exist_are_known(topology):
    assert chip_of(topology) is CHIPS[topology.partition(":")[0]]


def test_without_the_compiler_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install libtpu"):
        tpu_devices("v5e:2x2")


class TestCompiled:
    pytestmark = needs_compiler

    @pytest.mark.parametrize("name", CHIPS)
    def test_chips_are_as_the_compiler_has_them(self, name):
        chip = CHIPS[name]
        devices = tpu_devices(f"{name}:{chip.shapes[1]}")
        assert len(devices) == math.prod(map(int, chip.shapes[1].split("x")))
        whole = NamedSharding(distributed.make_mesh(devices=devices[:1]), PartitionSpec())
        matrix = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=whole)
        program = compile_for_tpu(jax.jit(jnp.matmul).lower(matrix, matrix))
        cycles = sum(row["cycles"] for row in estimated_operations(program.as_text(), chip))
        assert 0.7 <= 2 * 8192**3 / cycles / chip.cycle_flops <= 1
        huge = jax.ShapeDtypeStruct((2**16, 2**20), jnp.float32, sharding=whole)
        with pytest.raises(TooLargeError, match=f"{chip.memory / 2**30:g}G"):
            compile_for_tpu(jax.jit(lambda x: x + 1).lower(huge))

    def test_memory_is_the_compilers_and_weights_are_split(self, monkeypatch):
        programs = []

        def compile_and_keep(lowered):
            programs.append(compile_for_tpu(lowered))
            return programs[-1]

        monkeypatch.setattr(planning, "compile_for_tpu", compile_and_keep)
        changes = {"model.name": "mamba_femto", "model.dims": (128, 128), "optim.ema_decay": 0.9}
        figures = plan(
            tiny.config(**changes, **{"mesh.fsdp": 4}),
            "v5e:2x2",
            DIGITS,
            chip_hour_price=2.0,
            find_batch=False,
        )
        memory, of = figures["memory"], programs[0].memory_analysis()
        arguments, results = of.argument_size_in_bytes, of.output_size_in_bytes - of.alias_size_in_bytes
        assert memory["temporaries"] == of.temp_size_in_bytes
        assert memory["total"] == arguments + results + of.temp_size_in_bytes + of.generated_code_size_in_bytes
        kept = sum(memory[name] for name in ("parameters", "optimizer", "ema", "teacher", "batch"))
        assert kept <= arguments <= 2 * kept
        assert figures["fits"]
        assert figures["cycles_by_rule"]["schedule"] > 0
        assert sum(figures["cycles_by_rule"].values()) == figures["cycles"]
        assert {"all-gather", "all-reduce"} <= set(figures["collective_bytes"])
        assert "all-to-all" not in figures["collective_bytes"]
        assert figures["cost"] == 2.0 * figures["chip_hours"] > 0
        assert 0 < figures["mfu"] < 1

    def test_largest_batch_is_compiled(self, monkeypatch):
        chip = chip_of("v5e:1x1")
        # A chip with little memory, so that small programs, which compile faster, are too large.
        monkeypatch.setattr(planning, "chip_of", lambda topology: chip._replace(memory=24 * 2**20))
        config = tiny.config(batch_size=64, eval_batch_size=64)
        figures = plan(config, "v5e:1x1", DIGITS, find_batch=True)
        assert figures["largest_microbatch"] % 8 == 0
        assert 0 < figures["largest_microbatch_memory"] <= 24 * 2**20
