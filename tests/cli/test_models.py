"""`models` lists the numbers of the registry and of the models."""

import json

import pytest

import mambaout_jax as mo
from mambaout_jax.__main__ import main
from mambaout_jax.models import find_family, macs


@pytest.fixture(autouse=True)
def no_models(monkeypatch):
    """Refuse to build models: the variants of the package state their numbers."""
    monkeypatch.setattr(macs, "create_model", None)


def test_table_has_a_row_for_each_model_in_aligned_columns(capsys):
    assert main(["models"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == mo.list_models()
    tiny = next(row for row in rows if row.startswith("mambaout_tiny "))
    assert tiny.split(maxsplit=1)[1].strip() == "26.55 M    4.470 G  224 px  82.7 at 224, 83.5 at 288"
    assert next(row for row in rows if row.startswith("test_mambaout ")).endswith("160 px  -")
    assert len({row.index(" px  ") for row in rows}) == 1
    assert head.index("published") == tiny.index("82.7")
    assert head.index("size") + len("size") == tiny.index(" px") + len(" px")


def test_json_has_exact_numbers(capsys):
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == mo.list_models()
    for row in rows:
        variant = find_family(row["name"]).variants[row["name"]]
        assert (row["params"], row["macs"]) == (variant.params, variant.macs)
        assert row["size"] == variant.size
        assert row["top1"] == {str(size): percent for size, percent in variant.top1.items()}


def test_json_has_the_source_of_every_published_accuracy_and_of_all_weights(capsys):
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    for row in rows:
        if row["top1"]:
            publication = row["publication"]
            assert all(publication[key].startswith("https://") for key in ("paper", "repository")), row["name"]
            assert publication["license"], row["name"]
            assert publication["bibtex"].startswith("@"), row["name"]
        if row["checkpoint"]:
            assert row["checkpoint"].keys() == {"url", "license", "sha256", "entry"}
            assert row["checkpoint"]["url"].startswith("https://")
    assert {row["name"] for row in rows if row["checkpoint"]} == {
        name for name in mo.list_models() if find_family(name).variants[name].checkpoint
    }
