"""docs/extending.md describes what there is: its example works, and no member of a task is missing."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax import plugins
from mambaout_jax.run.config_file import read_config
from mambaout_jax.tasks.api import Task

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()


@pytest.mark.slow
def test_example_of_a_family_works_as_a_plugin(tmp_path, monkeypatch):
    example, experiment = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "tinynet.py").write_text(example)
    (tmp_path / "my_config.py").write_text(experiment)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_loaded", {})
    plugins.load(["tinynet"])
    read_config(f"{tmp_path}/my_config.py").build_task().check()
    model = mo.create_model("tinynet_32", num_classes=10, img_size=32)
    variables = model.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    assert model.apply(variables, images).shape == (2, 10)
    _, batch_stats = model.apply_train(variables, images)
    assert not np.array_equal(batch_stats["norm"]["running_mean"], variables["batch_stats"]["norm"]["running_mean"])
    state_dict = mo.to_torch(model, variables)
    assert "bn.running_mean" in state_dict
    jax.tree.map(np.testing.assert_array_equal, mo.from_torch(model, state_dict), variables)


def test_page_lists_every_member_of_the_task_protocol():
    members = [name for name in {**Task.__annotations__, **vars(Task)} if not name.startswith("_")]
    assert len(members) > 25
    assert [name for name in members if f"`{name}`" not in PAGE] == []
