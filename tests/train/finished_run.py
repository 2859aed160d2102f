"""Helpers that write the workdir of a finished run by hand, and read its report."""

import json
import re
from html.parser import HTMLParser

import numpy as np

from mambaout_jax.report.html import write_report

COUNT = 360
RESULTS = {
    "ema": {"top1": 99.17, "top5": 100.0, "loss": 0.0712, "count": COUNT},
    "raw": {"top1": 98.61, "top5": 99.72, "loss": 0.0931, "count": COUNT},
    "steps": 1320,
    "train_seconds": 55.2,
    "input_size": [32, 32],
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def write_json(workdir, name, content):
    (workdir / name).write_text(json.dumps(content))


def edit_json(workdir, name, **changes):
    write_json(workdir, name, json.loads((workdir / name).read_text()) | changes)


def write_metrics(workdir, lines):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def train_line(step, **changes):
    line = {"kind": "train", "step": step, "epoch": step / 2, "loss": 1 / step, "learning_rate": 0.1, "grad_norm": 2.5}
    return {**line, "images_per_second": 2800.0, "input_wait": 0.02, "seconds": 1.0, **changes}


def eval_line(step, top1):
    score = {"top1": top1, "top5": 100.0, "loss": 0.5, "count": COUNT}
    return {"kind": "eval", "step": step, "epoch": step / 2, "raw": score, "ema": score, "seconds": 1.0}


def write_predictions(workdir, source, labels, mistakes, classes=10):
    """Predict images correctly except `mistakes`, index -> probability of the wrong class.

    Args:
        source: fingerprint of the split.
    """
    labels = np.array(labels, np.int32)
    top = np.stack([labels, (labels + 1) % classes], 1)
    probabilities = np.tile(np.float32([0.8, 0.1]), (len(labels), 1))
    for index, probability in mistakes.items():
        top[index] = top[index, ::-1]
        probabilities[index, 0] = probability
    arrays = {"labels": labels, "classes": top, "probabilities": probabilities, "fingerprint": source}
    np.savez(workdir / "predictions.npz", **arrays)


def write_and_read(workdir):
    return write_report(workdir).read_text()


def words(page):
    """Return the text between tags, on one line."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


class Tags(HTMLParser):
    """Collects (tag, attributes), and asserts that elements are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
