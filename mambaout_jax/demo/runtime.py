"""The files of onnxruntime-web, the runtime of ONNX models in browsers, from its npm package."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from mambaout_jax.errors import reason
from mambaout_jax.export.errors import ExportError
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.process import commit_folder, scratch_folder

# Runs models on the CPU by WebAssembly. Other versions have files of the same names.
PACKAGE = "onnxruntime-web@1.30.0"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def find_runtime(folder: str | None, log: Callable[[str], None]) -> Path:
    """Return a folder with the files of the runtime.

    Args:
        folder: the folder `dist` of the npm package; None to use the cache in the user's cache directory, which is
            filled by `npm pack` once.

    Raises:
        ExportError: the folder lacks a file, or npm is missing or fails.
    """
    if folder is not None:
        if missing := [name for name in FILES if not (Path(folder).expanduser() / name).is_file()]:
            raise ExportError(f"{folder} lacks {', '.join(missing)}; expected the folder dist of npm's onnxruntime-web")
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(base).expanduser() / "mambaout_jax" / PACKAGE
    if not all((cache / name).is_file() for name in FILES):
        log(f"downloading {PACKAGE} with npm, once")
        _fill(cache)
    return cache


def _fill(cache: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError(
            f"npm, which downloads {PACKAGE}, is not installed; install Node.js, or set --runtime to the folder dist "
            "of that package"
        )
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(cache) as draft:
            command = [npm, "pack", "--silent", PACKAGE]
            done = subprocess.run(command, cwd=draft, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ExportError(f"npm failed to download {PACKAGE} ({' '.join(done.stderr.split())[:300]})")
            [archive] = (path for path in draft.iterdir() if path.suffix == ".tgz")
            dist = draft / "dist"
            dist.mkdir()
            with tarfile.open(archive) as files:
                for name in FILES:
                    (dist / name).write_bytes(files.extractfile(f"package/dist/{name}").read())
            commit_folder(dist, cache, replace=True)
    except (OSError, KeyError, tarfile.TarError) as error:
        raise_machine_fault(error, cache, to_write=True)
        raise ExportError(f"{PACKAGE} cannot be stored in {cache} ({reason(error)})") from error
