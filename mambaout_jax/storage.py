"""Access to buckets: timeouts and error messages. Standard library only."""

import logging
import os

REMOTE_SECONDS = 30

# These log errors that they also raise or recover from, some with a traceback.
for _name in ("gcsfs", "google.auth"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path is in a bucket, where files can be neither appended to nor locked."""
    return "://" in os.fspath(path)


def find_pattern(path: str | os.PathLike) -> str:
    """Return a phrase about a character in a path that libraries read as part of a pattern; empty if it has none.

    Orbax and TFDS pass whole paths to `glob` without escaping them.
    """
    text = os.fspath(path) if is_remote(path) else os.path.abspath(os.path.expanduser(path))
    found = next((char for char in text if char in "*?["), None)
    return "" if found is None else f"has {found!r} in its path, which libraries read as a pattern; rename the folder"


def find_unknown_home(path: str | os.PathLike) -> str:
    """Return a phrase about a path in a home folder that is unknown; empty for other paths.

    Such a path would be a folder named `~` in the current one.
    """
    text = os.fspath(path)
    if not os.path.expanduser(text).startswith("~"):
        return ""
    remedy = "set HOME" if text.partition("/")[0] == "~" else "check the user's name"
    return f"is not a path, because the home folder is unknown; {remedy}, or use an absolute path"


def find_undecodable(path: str | os.PathLike) -> str:
    """Return a phrase about a path that is not UTF-8, which libraries and reports require; empty for other paths."""
    text = os.fspath(path) if is_remote(path) else os.path.abspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogates represent other bytes in a path
        return "has a name in its path that is not UTF-8; rename the folder"
    return ""


def explain(error: Exception) -> str:
    """Return one line on an error of any bucket client, with the remedy if it is known."""
    if isinstance(error, ImportError):
        return "its client is not installed: pip install 'etils[epath-gcs]'"
    if isinstance(error, FileNotFoundError):  # with that permission, even an empty bucket is found
        return "the bucket does not exist, or the permission storage.buckets.get is missing"
    words = " ".join(str(error).split()) or type(error).__name__
    return f"{words}: gcloud auth application-default login" if getattr(error, "code", None) == 401 else words
