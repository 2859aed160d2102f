"""The table and the JSON of `analyze` have the same numbers."""

import json
import re

import pytest

from mambaout_jax.__main__ import main
from mambaout_jax.analyze.ssm_need import analyze


def test_table_has_the_paper_s_numbers_without_a_model(capsys):
    assert main(["analyze"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "images of" in line] == [
        "imagenet, images of 224x224 px",
        "coco, images of 800x1280 px",
        "ade20k, images of 512x2048 px",
    ]
    rows = [line.split() for line in lines if "patch 16" in line]
    assert [row[3:7:2] for row in rows] == [["384", "196"], ["768", "196"], ["384", "4,000"], ["768", "4,000"],
                                            ["384", "4,096"], ["768", "4,096"]]  # fmt: skip
    assert [row[6] for row in rows] == ["2,304", "4,608"] * 3
    assert lines[3].endswith("0.753      0.470    0.389   short: no SSM needed")


def test_a_model_with_an_ssm_has_a_column_for_its_block(capsys):
    for model, columns in (("mamba_tiny", ["Transformer", "Gated CNN", "+ SSM", "Mamba"]),
                           ("mambaout_tiny", ["Transformer", "Gated CNN", "Mamba"])):  # fmt: skip
        assert main(["analyze", model, "--size=224"]) == 0
        _, _, heads, *rows = capsys.readouterr().out.splitlines()
        assert re.split(r"\s{2,}", heads.strip()) == columns
        row = analyze(model, size=(224, 224))["rows"][0]
        totals = [f"{terms['total'] / 1e9:.3f}" for block, terms in row["flops"].items() if "causal" not in block]
        assert rows[0].split()[7 : 7 + len(columns)] == totals


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["test_mambaout"], {"model": "test_mambaout"}),
        (["test_mambaout", "--size", "64"], {"model": "test_mambaout", "size": (64, 64)}),
        (["--size", "64", "96"], {"size": (64, 96)}),
        (["--dataset=coco"], {"dataset": "coco"}),
    ],
)
def test_json_has_every_number(words, arguments, capsys):
    assert main(["analyze", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(analyze(**arguments)))


@pytest.mark.slow
def test_page_is_written_to_out_and_its_path_is_printed(tmp_path, capsys):
    assert main(["analyze", "--dataset=imagenet", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.endswith(f"\npage: {tmp_path}/out/analyze.html\n")
    names = ["analyze.html", "flops_384.png", "flops_768.png", "memory_384.png", "memory_768.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "cocoa"], "'cocoa' is not a known dataset; did you mean 'coco'?"),
        (["mamba_tinny"], "'mamba_tinny' is not a known model; did you mean 'mamba_tiny'?"),
        (["--size", "1", "2", "3"], "--size has 3 numbers; expected a side, or a height and a width"),
    ],
)
def test_invalid_options_are_one_sentence(words, message, capsys):
    assert main(["analyze", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
