"""Downloads of published weights into the user's cache, with a check of their SHA-256."""

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit

from mambaout_jax.extras import importing
from mambaout_jax.machine import is_exhausted, raise_machine_fault
from mambaout_jax.models import Checkpoint
from mambaout_jax.storage import find_unknown_home
from mambaout_jax.weights.errors import WeightsError

_TIMEOUT_SECONDS = 30  # for each response of the server


def download_checkpoint(checkpoint: Checkpoint) -> Path:
    """Download published weights unless they are in the user's cache, and return the path of the file.

    A download that is interrupted leaves no file.

    Raises:
        WeightsError: the server does not send the file, or its SHA-256 is not that of the checkpoint.
        MissingExtraError: pooch is not installed.
    """
    with importing("hub", f"downloading {checkpoint.url} requires pooch"):
        import pooch

    name = (
        f"{hashlib.sha256(checkpoint.url.encode()).hexdigest()[:8]}-{os.path.basename(urlsplit(checkpoint.url).path)}"
    )
    cache = pooch.os_cache("mambaout_jax")
    if fault := find_unknown_home(cache):
        raise WeightsError(f"{checkpoint.url}: its cache, {cache}, {fault}")
    fetch = pooch.HTTPDownloader(timeout=_TIMEOUT_SECONDS, progressbar=False)
    pooch.get_logger().setLevel("WARNING")  # it suggests to record the digest
    try:
        path = Path(pooch.retrieve(checkpoint.url, known_hash=None, fname=name, path=cache, downloader=fetch))
    except Exception as error:  # each transport raises its own types
        if is_exhausted(error):
            raise_machine_fault(error, checkpoint.url)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{checkpoint.url}: the download failed ({reason[0]:.200}); try again") from error
    digest = sha256(path)
    if checkpoint.sha256 is not None and not digest.startswith(checkpoint.sha256):
        path.unlink()
        raise WeightsError(
            f"{checkpoint.url} has SHA-256 {digest}; expected {checkpoint.sha256}: the published file has changed, "
            "or the download was modified on the way"
        )
    return path


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
