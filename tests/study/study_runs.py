"""Studies without training: variants and the files of finished runs, written by hand."""

import json
import runpy
from pathlib import Path

from mambaout_jax.run.config import RunConfig, parse_config
from mambaout_jax.run.errors import DivergedError
from mambaout_jax.study import study
from mambaout_jax.study.variants import StudyVariant

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "configs" / "study.py"
MODEL = {"name": "mambaout_femto", "img_size": 32, "in_chans": 1, "depths": (1, 1), "dims": (8, 16), "kernel_size": 3}
CONV = "convolution alone"
VARIANTS = [
    StudyVariant("conv", CONV, False, ("removed", "matched"), {**MODEL, "token_mixer": "conv"}, 5_432, 123_456),
    StudyVariant(
        "removed-ssm-causal", "SSM (causal)", True, ("removed",), {**MODEL, "token_mixer": "conv_ssm"}, 6_543, 234_567
    ),
    StudyVariant("matched-ssm-causal", "SSM (causal)", True, ("matched",), {**MODEL, "dims": (7, 15)}, 5_421, 122_333),
    StudyVariant("matched-vit-full", "ViT (full)", False, ("matched",), {**MODEL, "dims": (9, 9)}, 5_444, 7_654_321),
]
# By variant, one value per repeat.
SCORES = {
    "conv": [90.25, 91.5, 92.75],
    "removed-ssm-causal": [92.25, 93.625, 94.625],
    "matched-ssm-causal": [90.125, 92.0, 92.5],
    "matched-vit-full": [80.75, 82.125, 83.375],
}


def settings(data_dir, **changes) -> RunConfig:
    """Build a study's experiment; changes are dotted keys."""
    config = runpy.run_path(str(EXPERIMENT))["get_config"]("digits")
    config.update_from_flattened_dict({"data.data_dir": str(data_dir), **changes})
    return parse_config({**config.to_dict(), "model": MODEL})


class Training:
    """Stand-in for `train` that keeps the configs and writes what a run writes.

    Args:
        scores: by variant, one value per repeat.

    Attributes:
        stop_after: runs, before the next one raises `error`.
        diverging: names and repeats of runs that diverge, each time that they are trained.
    """

    def __init__(self, monkeypatch, scores=None):
        self.configs, self.scores = {}, scores or SCORES
        self.stop_after, self.error, self.diverging = None, None, set()
        monkeypatch.setattr(study, "train", self)
        monkeypatch.setattr(study, "write_report", lambda folder: (folder / "report.html").write_text(""))
        monkeypatch.setattr(study, "design_variants", lambda model, study, build: VARIANTS)
        monkeypatch.setattr(study, "step_memory", lambda config: 10_000_000 + config.model["dims"][0])

    def __call__(self, config, folder):
        if len(self.configs) == self.stop_after:
            raise self.error
        name, repeat = folder.parent.name, int(folder.name)
        assert (name, repeat) not in self.configs
        self.configs[name, repeat] = config
        folder.mkdir(parents=True)
        if (name, repeat) in self.diverging:
            raise DivergedError("step 3 has loss nan")
        score = {"top1": self.scores[name][repeat]}
        (folder / "results.json").write_text(json.dumps({"raw": {"top1": 1.0}, "ema": score, "steps": 210}))
        lines = [{"kind": "train", "images_per_second": 64 / seconds} for seconds in (0.25, 0.125, 9.0)]
        lines.append({"kind": "eval"})
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"kind": "tra')
