"""Sessions of tests share compiled programs, but none that a killed process wrote in part."""

import os
import time

from jax._src.compilation_cache import compress_executable

from tests.compilation_cache import MAX_AGE_SECONDS, close_session, open_session


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_complete_entries_outlive_their_session_until_they_are_old(tmp_path):
    entry = compress_executable(b"program" * 1000)
    session = open_session(tmp_path)
    (session / "complete-cache").write_bytes(entry)
    (session / "truncated-cache").write_bytes(entry[:-9])
    close_session(session, tmp_path)
    assert names(tmp_path) == ["complete-cache"]
    session = open_session(tmp_path)
    assert names(session) == ["complete-cache"]
    close_session(session, tmp_path)
    assert names(tmp_path) == ["complete-cache"]
    long_ago = time.time() - MAX_AGE_SECONDS - 1
    os.utime(tmp_path / "complete-cache", (long_ago, long_ago))
    assert names(open_session(tmp_path)) == []


def test_sessions_at_a_time_keep_the_entries_of_both(tmp_path):
    sessions = [open_session(tmp_path) for _ in range(2)]
    for session, name in zip(sessions, ("a-cache", "b-cache"), strict=True):
        for written in (name, "same-cache"):
            (session / written).write_bytes(compress_executable(b"program"))
    for session in sessions:
        close_session(session, tmp_path)
    assert sorted(names(tmp_path)) == ["a-cache", "b-cache", "same-cache"]
