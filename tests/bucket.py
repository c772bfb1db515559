"""An emulator of Google Cloud Storage's JSON interface, as far as gcsfs and tensorstore use it.

  with Server() as server:
    subprocess.run(command, env=os.environ | server.environment)
    server.objects["run/config.json"].content
    server.fault = lambda method: (403, "no permission") if method != "GET" else None

There is one bucket, `bucket`, in memory. Uploads in one request or in parts, ranges, listings and
generations with their preconditions are there; batches and access rights are not.
"""

import http.server
import itertools
import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/bucket/o/([^/]+)")
_OBJECTS = re.compile(r"(/upload)?/storage/v1/b/bucket/o")


class Object(NamedTuple):
  """A file of the bucket."""

  content: bytes
  generation: int


class Server:
  """The bucket on a free port; `fault(method)` gives None, or a status and a message."""

  def __init__(self):
    self.objects: dict[str, Object] = {}
    self.uploads: dict[str, tuple[str, bytearray]] = {}  # those that are not finished
    self.fault: Callable[[str], tuple[int, str] | None] = lambda method: None
    self.lock, self.numbers = threading.RLock(), itertools.count(1)
    handler = type("Handler", (_Handler,), {"store": self})
    self.http = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    self.http.handle_error = lambda *unused: None  # gcsfs hangs up where it needs no answer more
    self.url = f"http://localhost:{self.http.server_port}"
    self.environment = {
      "STORAGE_EMULATOR_HOST": self.url,  # of gcsfs
      "TENSORSTORE_GCS_HTTP_URL": self.url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",  # of tensorstore
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask Google about the bucket
    }

  def __enter__(self) -> "Server":
    threading.Thread(target=self.http.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *unused: Any) -> None:
    self.http.shutdown()
    self.http.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
  store: Server
  protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

  def log_message(self, *unused: Any) -> None:
    pass

  def _answer(self) -> None:
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    with self.store.lock:
      if wrong := self.store.fault(self.command):
        self._fail(*wrong)
      elif found := _OBJECT.fullmatch(url.path):
        self._object(urllib.parse.unquote(found[1]), query)
      elif found := _OBJECTS.fullmatch(url.path):
        self._upload(query, body) if found[1] else self._list(query)
      elif url.path == "/storage/v1/b/bucket":  # Orbax asks for it
        self._json({"name": "bucket"})
      else:
        self._fail(404, "The specified bucket does not exist.")

  do_GET = do_POST = do_PUT = do_DELETE = _answer

  def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
    self.send_response(status)
    for key, value in ({"Content-Length": str(len(content))} | headers).items():
      self.send_header(key.replace("_", "-"), value)
    self.end_headers()
    self.wfile.write(content)

  def _json(self, value: Any, **headers: str) -> None:
    self._send(200, json.dumps(value).encode(), **headers)

  def _fail(self, status: int, message: str) -> None:
    self._send(status, json.dumps({"error": {"code": status, "message": message}}).encode())

  def _holds(self, name: str, query: dict[str, str]) -> bool:
    """Whether the preconditions of a request hold."""
    now = str(self.store.objects[name].generation if name in self.store.objects else 0)
    return query.get("ifGenerationMatch", now) == now != query.get("ifGenerationNotMatch")

  def _object(self, name: str, query: dict[str, str]) -> None:
    old = self.store.objects.get(name)
    if not self._holds(name, query):
      return self._send(304 if "ifGenerationNotMatch" in query else 412)
    if old is None:
      return self._fail(404, f"No such object: bucket/{name}")
    if self.command == "DELETE":
      del self.store.objects[name]
      return self._send(204)
    if query.get("alt") != "media":
      return self._json(_about(name, old))
    content, headers = old.content, {"x_goog_generation": str(old.generation)}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
    if wanted is None:
      return self._send(200, content, **headers)
    start = int(wanted[1]) if wanted[1] else max(len(content) - int(wanted[2]), 0)
    part = content[start : int(wanted[2]) + 1 if wanted[1] and wanted[2] else None]
    if not part:
      return self._fail(416, "range not satisfiable")
    where = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    return self._send(206, part, Content_Range=where, **headers)

  def _list(self, query: dict[str, str]) -> None:
    prefix, cut = query.get("prefix", ""), query.get("delimiter")
    names = [x for x in sorted(self.store.objects) if x.startswith(prefix)]
    folders, items = {}, []
    for name in names:
      head, found, _ = name[len(prefix) :].partition(cut) if cut else ("", "", "")
      if found:
        folders[prefix + head + found] = None
      elif query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff"):
        items.append(_about(name, self.store.objects[name]))
    self._json({"kind": "storage#objects", "items": items, "prefixes": [*folders]})

  def _upload(self, query: dict[str, str], body: bytes) -> None:
    kind, name = query["uploadType"], query.get("name", "")
    if "upload_id" in query:
      name, content = self.store.uploads[query["upload_id"]]
      content += body
      if self.headers.get("Content-Range", "").endswith("/*"):  # more will come
        return self._send(308, Range=f"bytes=0-{len(content) - 1}")
      body = bytes(content)
    elif kind == "multipart":  # of gcsfs: the name and the content, each below a header
      bound = b"--" + self.headers["Content-Type"].split("boundary=")[1].strip("\"'").encode()
      parts = body.removesuffix(b"\n" + bound + b"--").split(bound, 2)
      about, body = (part.split(b"\n\n", 1)[1] for part in parts[1:])
      name = json.loads(about)["name"]
    if not self._holds(name, query):
      return self._send(412)
    if kind == "resumable" and "upload_id" not in query:
      self.store.uploads[mark := f"{next(self.store.numbers):020}"] = (name, bytearray())
      place = f"{self.store.url}/upload/storage/v1/b/bucket/o?uploadType=resumable&upload_id={mark}"
      return self._json({}, Location=place)
    self.store.objects[name] = new = Object(body, next(self.store.numbers))
    return self._json(_about(name, new))


def _about(name: str, found: Object) -> dict[str, str]:
  facts = {"bucket": "bucket", "name": name, "size": str(len(found.content))}
  time = "2026-01-01T00:00:00.000Z"
  return facts | {"generation": str(found.generation), "updated": time, "timeCreated": time}
