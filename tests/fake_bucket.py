"""A bucket on this machine: of Google Cloud Storage's JSON interface what orbax, tensorstore and gcsfs use.

Reference: cloud.google.com/storage/docs/json_api. Objects have generations, which tensorstore's writes depend on.
"""

import base64
import hashlib
import itertools
import json
import re
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

_OBJECT = re.compile(r".*/storage/v1/b/bucket/o(?:/(?P<name>[^/]*))?(?:/(?P<verb>\w+To)(?P<to>/.*))?$")
# What is said of other buckets.
_REFUSALS = {
    "forbidden": (403, "someone does not have storage.objects.list access to the bucket."),
    "private": (401, "Anonymous caller does not have storage.objects.list access to the bucket."),
    "unseen": (403, "someone does not have storage.buckets.get access to the bucket."),  # of objects there are none
}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Stay silent of clients that do not wait for an answer, as those that are killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Bucket(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Stay silent."""

    def parse_request(self):
        """Refuse what is about another bucket."""
        if not super().parse_request():
            return False
        bucket = re.search("/b/([^/?]+)", self.path)[1]
        if bucket == "bucket":
            return True
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "/b/unseen/o/" in self.path:
            self._answer(404)
            return False
        if "/b/unseen/o" in self.path:
            self._answer(200, {"kind": "storage#objects"})
            return False
        code, message = _REFUSALS.get(bucket, (404, "The specified bucket does not exist."))
        self._answer(code, {"error": {"code": code, "message": message}})
        return False

    def _answer(self, code, body=b"", **headers):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def _parse(self):
        """Set the object's name, the query, and what follows the name; tell whether it is about objects."""
        address = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(address.query).items()}
        found = _OBJECT.match(address.path)
        self.name = unquote(found["name"] or "") if found else ""
        self.verb, self.to = (found["verb"], found["to"]) if found else (None, None)
        return bool(found)

    def _describe(self, name):
        generation, data = self.server.objects[name]
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        return {
            "kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(data)), "md5Hash": digest,
            "generation": str(generation), "metageneration": "1", "etag": str(generation),
            "updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip

    def _as_wanted(self):
        """Tell whether the object has the generation that a request depends on; 0 is that of none."""
        has = str(self.server.objects.get(self.name, (0,))[0])
        wanted, unwanted = self.query.get("ifGenerationMatch", has), self.query.get("ifGenerationNotMatch")
        if wanted != has:
            self._answer(412, {"error": {"code": 412, "message": "generation"}})
        elif unwanted == has:
            self._answer(304)
        return wanted == has and unwanted != has

    def _put(self, name, data):
        with self.server.lock:
            if self._as_wanted():
                self.server.objects[name] = next(self.server.generations), data
                self._answer(200, self._describe(name))

    def do_GET(self):
        if not self._parse():
            self._answer(200, {"name": "bucket"})
        elif not self.name:
            self._list()
        elif self.name not in self.server.objects:
            self._answer(404, {"error": {"code": 404, "message": "not found"}})
        elif self.query.get("alt") != "media":
            self._answer(200, self._describe(self.name))
        elif self._as_wanted():
            generation, data = self.server.objects[self.name]
            wanted = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            headers = {"x_goog_generation": generation, "ETag": generation, "Content_Type": "application/octet-stream"}
            if not wanted:
                self._answer(200, data, **headers)
                return
            first = int(wanted[1]) if wanted[1] else max(len(data) - int(wanted[2]), 0)
            last = min(int(wanted[2]), len(data) - 1) if wanted[1] and wanted[2] else len(data) - 1
            if first > last:
                self._answer(416)
                return
            headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            self._answer(206, data[first : last + 1], **headers)

    def _list(self):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        items, prefixes = [], {}
        for name in sorted(self.server.objects):
            if not name.startswith(prefix) or name < self.query.get("startOffset", ""):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found and delimiter:
                prefixes[prefix + head + delimiter] = None
            else:
                items.append(self._describe(name))
        self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": list(prefixes)})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._parse()
        if self.verb and self.name not in self.server.objects:
            self._answer(404, {"error": {"code": 404, "message": "not found"}})
        elif self.verb:
            target = unquote(self.to.rpartition("/o/")[2])
            moved = self.server.objects[self.name][1]
            if self.verb == "moveTo":
                del self.server.objects[self.name]
            self.name = target
            self.server.objects[target] = next(self.server.generations), moved
            described = self._describe(target)
            self._answer(200, described if self.verb != "rewriteTo" else {"done": True, "resource": described})
        elif "upload_id" in self.query:
            self._resume(body)
        elif self.query["uploadType"] == "media":
            self.name = self.query["name"]
            self._put(self.name, body)
        else:  # resumable, which starts with the name alone
            self.name = self.query.get("name") or json.loads(body)["name"]
            upload = str(next(self.server.generations))
            self.server.uploads[upload] = b""
            place = f"http://{self.headers['Host']}/upload/storage/v1/b/bucket/o/{quote(self.name, safe='')}"
            self._answer(200, Location=f"{place}?upload_id={upload}")

    def _resume(self, body):
        upload = self.query["upload_id"]
        self.server.uploads[upload] += body
        size, total = len(self.server.uploads[upload]), self.headers["Content-Range"].rpartition("/")[2]
        if total == str(size):
            self._put(self.name, self.server.uploads.pop(upload))
        else:
            self._answer(308, Range=f"bytes=0-{size - 1}")

    def do_DELETE(self):
        self._parse()
        if self.name not in self.server.objects:
            self._answer(404, {"error": {"code": 404, "message": "not found"}})
        elif self._as_wanted():
            del self.server.objects[self.name]
            self._answer(204)


@contextmanager
def bucket():
    """Serve an empty gs://bucket; give its objects, and the environment that leads programs to it."""
    with _Server(("localhost", 0), _Bucket) as server:
        server.objects, server.uploads, server.lock, server.generations = {}, {}, threading.Lock(), itertools.count(1)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://localhost:{server.server_port}"
        environment = {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GOOGLE_APPLICATION_CREDENTIALS": "/dev/null",  # nobody's own, which might reach a real bucket
            "GCE_METADATA_ROOT": "metadata.invalid",
            "GOOGLE_CLOUD_PROJECT": "project",
            "NO_GCE_CHECK": "true",
        }
        try:
            yield server.objects, environment
        finally:
            server.shutdown()
            thread.join()
