"""`plan` prints each figure with its unit, and that it is an estimate."""

import json

import pytest

from mambaout_jax.__main__ import main
from mambaout_jax.plan import plan as planning
from mambaout_jax.plan.chips import CHIPS
from mambaout_jax.plan.plan import run_time, throughput
from tests.train import tiny

MIB = 2**20
ROWS = [
    {
        "cycles": 12_000_000,
        "operation": "fusion.1",
        "shape": "f32[8,128]",
        "source": "jit(step)/dot",
        "rule": "compiler",
    },
    {"cycles": 3_000_000, "operation": "scan.2", "shape": "f32[4]", "source": "jit(step)/scan", "rule": "bytes"},
]
MEMORY = {"parameters": 100 * MIB, "optimizer": 200 * MIB, "ema": 0, "teacher": 0, "batch": MIB, "limit": 16_128 * MIB}


def figures(**changes):
    memory = MEMORY | {
        "arguments": 305 * MIB,
        "results": 0,
        "temporaries": 700 * MIB,
        "program": 20 * MIB,
        "total": 1025 * MIB,
    }
    result = {
        "topology": "v5e:4x4",
        "chips": 16,
        "batch_size": 4096,
        "batch_per_chip": 256,
        "grad_accum_steps": 2,
        "fsdp": 1,
    }
    result |= {"memory": memory, "fits": True, "collective_bytes": {"all-reduce": 50 * MIB, "all-gather": 9 * MIB}}
    result["uncounted_loops"], result["bounded_loops"] = [], []
    result |= throughput(ROWS, CHIPS["v5e"], 4096, 16, 10**9)
    return result | run_time(result["step_seconds"], 36_000, 16) | changes


@pytest.fixture
def planned(monkeypatch):
    """Patch the planner to return figures without compilation, and record its arguments."""
    asked = []

    def plan(config, topology, dataset, **options):
        asked.append((topology, dataset, options))
        return plan.result

    plan.result = figures()
    asked.append(plan)
    monkeypatch.setattr(planning, "plan", plan)
    return asked


def command(*words):
    return main(["plan", f"--config={tiny.DIGITS}", "--topology=v5e:4x4", *words])


def test_every_figure_is_printed_with_its_unit(planned, capsys):
    assert command() == 0
    text = capsys.readouterr().out
    for line in (
        "mambaout_femto in float32 on v5e:4x4: 16 chips, batch 4096, 256 per chip in 2 accumulation steps, fsdp 1",
        "parameters 100.0 MiB",
        "padding, counters 4.0 MiB",
        "activations (temporaries) 700.0 MiB",
        "total 1,025.0 MiB",
        "available on a chip 16,128.0 MiB: 6 % used",
        "collectives per step all-gather 9.0 MiB, all-reduce 50.0 MiB",
        "cycles per step 15.0 million at 1.50 GHz",
        "step 10.0 ms",
        "images 410,417 /s",
        "MFU 13.0 % of the bfloat16 peak, 1.00 GFLOPs per image",
        "full run 36,000 steps, 0.10 hours, 1.6 chip hours",
        "12.00 fusion.1 f32[8,128] jit(step)/dot",
        "3.00 scan.2 f32[4] jit(step)/scan (by bytes)",
    ):
        assert line in [" ".join(row.split()) for row in text.splitlines()], line
    assert "scheduled instructions (0.0 million cycles in total) and its memory transfers" in text
    assert "(3.0 million)." in text
    assert text.splitlines()[-1].startswith("These are the compiler's estimates, not measurements.")
    assert "EMA" not in text
    assert "cost" not in text


def test_options_reach_the_plan(planned, capsys):
    assert command("--chip-hour-price=1.2", "--find-batch", "--num-images=9000", "--num-classes=3") == 0
    assert planned[1] == ("v5e:4x4", (9000, {"num_classes": 3}), {"chip_hour_price": 1.2, "find_batch": True})


def test_price_and_largest_batch_are_printed_on_request(planned, capsys):
    planned[0].result = figures(cost=1234.5, largest_microbatch=184, largest_microbatch_memory=15 * 2**30)
    assert command() == 0
    text = capsys.readouterr().out
    assert "cost                         1,234.50" in text
    assert "Largest microbatch per chip: 184 images, 15.00 GiB" in text


def test_loops_of_unknown_length_are_named(planned, capsys):
    planned[0].result = figures(uncounted_loops=["jit(step)/beta", "jit(step)/alpha", "jit(step)/beta"])
    assert command() == 0
    assert "3 loops of unknown length, counted once: jit(step)/alpha, jit(step)/beta." in capsys.readouterr().out


def test_json_has_every_figure_and_the_warning(planned, capsys):
    assert command("--json") == 0
    written = json.loads(capsys.readouterr().out)
    assert written.items() >= figures().items()
    assert "not measurements" in written["warning"]


def test_a_step_that_does_not_fit_fails_with_the_reason(planned, capsys):
    kept = {key: value for key, value in figures().items() if key in ("topology", "chips", "batch_size", "fsdp")}
    planned[0].result = kept | {"batch_per_chip": 256, "grad_accum_steps": 1, "memory": MEMORY, "fits": False}
    planned[0].result |= {
        "too_large": "Used 20G of 15.75G hbm",
        "largest_microbatch": 0,
        "largest_microbatch_memory": 0,
    }
    assert command() == 1
    text = capsys.readouterr().out
    assert "Does not fit: Used 20G of 15.75G hbm." in text
    assert "Not even a microbatch of 8 images fits" in text
    assert "MFU" not in text


def test_a_total_above_the_limit_is_a_failure(planned, capsys):
    planned[0].result = figures(fits=False)
    assert command() == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--topology=v5e:3x5"], "known shapes are 1x1, 2x2"),
        (["--topology=h100:8"], "expected v4, v5e, v5p, v6e with a shape"),
        (["--config.data.name=flowers"], "add --num-images and --num-classes"),
        (["--config.mesh.fsd=2"], "fsdp"),
    ],
)
def test_invalid_arguments_are_one_sentence(planned, capsys, words, sentence):
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


@pytest.mark.parametrize("word", ["--chip-hour-price=-1", "--chip-hour-price=nan", "--num-images=0", "--num-classes=x"])
def test_invalid_numbers_are_refused(planned, capsys, word):
    with pytest.raises(SystemExit, match="2"):
        command(word)
    assert word.partition("=")[2] in capsys.readouterr().err
