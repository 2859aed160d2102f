"""A local server with the responses of the Hugging Face hub that its client uses."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The files of the server and the requests that it received.

    Args:
        files: (repository, revision, file name) -> content, or an error as (status, X-Error-Code).
    """

    def __init__(self, files):
        self.files = files
        self.asked = []
        self.url = None

    def answer(self, path):
        """Return (status, error code, content) for a path of the form /ORG/NAME/resolve/REVISION/FILE."""
        parts = path.strip("/").split("/", 4)
        if len(parts) != 5 or parts[2] != "resolve":
            return 404, "", b""
        repository, revision, name = "/".join(parts[:2]), parts[3], parts[4]
        if (repository, revision, name) in self.files:
            found = self.files[repository, revision, name]
            return (200, "", found) if isinstance(found, bytes) else (*found, b"")
        known = {key[:2] for key in self.files}
        if repository not in {key[0] for key in known}:
            return 401, "RepoNotFound", b""
        return 404, "EntryNotFound" if (repository, revision) in known else "RevisionNotFound", b""


@contextmanager
def serve(files):
    """Run a hub in a thread."""
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            hub.asked.append(f"{self.command} {self.path}")
            status, code, content = hub.answer(self.path)
            self.send_response(status)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
            if status == 200:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
