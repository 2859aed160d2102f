import pytest
import tensorflow_datasets as tfds

from tests.data import photos


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Return a folder with `photos` in both configs, prepared as ArrayRecord."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    tfds.disable_progress_bar()
    for config in ("whole", "broken"):
        photos.write(photos.Photos, folder, config=config)
    return str(folder)
