"""Stands in for an InfluxDB server and writes down every request that it gets.

    recorder.py NAME=FILE[:V] ... -- COMMAND ...

listens once for each NAME on a free port of loopback, runs COMMAND with NAME set to that address
(`http://127.0.0.1:PORT`), and ends when COMMAND does. What came in at NAME is in FILE: JSON lines, one for each
request, in the order of their arrival. V is the version of InfluxDB that answers, 1 or 2 (2 if it is left out).

`clients.py` and `home_assistant.py` use the class `Recorder` instead.
"""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

VERSIONS = {1: "1.8.10", 2: "v2.7.11"}
# Which port the recorder had is chance, and the length of a body can be seen.
LEFT_OUT = {"host", "content-length"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without this the answer leaves in two packets, and the second one waits for an acknowledgement of the first.
    wbufsize = -1

    def version_string(self):
        return "InfluxDB"

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def answer_to(self, path, body):
        """Status and JSON (or None), as InfluxDB has them."""
        influx = self.server.recorder.influx
        if path == "/ping":
            return 204, None
        if path == "/health":
            return 200, {
                "name": "influxdb",
                "message": "ready for queries and writes",
                "status": "pass",
                "checks": [],
                "version": VERSIONS[influx],
            }
        if path == "/ready":
            return 200, {"status": "ready", "started": "2026-01-01T00:00:00Z", "up": "1h0m0s"}
        if path == "/query":
            return 200, {"results": [{"statement_id": 0}]}
        if path == "/api/v2/write" and not body:
            return 400, {"code": "invalid", "message": "writing requires points"}
        if path in ("/write", "/api/v2/write", "/api/v3/write_lp"):
            return 204, None
        if path == "/api/v2/buckets":
            return 200, {"links": {"self": "/api/v2/buckets"}, "buckets": []}
        return 404, {"code": "not found", "message": "path not found"}

    def handle_request(self):
        body = self.body()
        status, value = self.answer_to(urlsplit(self.path).path, body)
        self.server.recorder.record(self, body, status)
        text = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("X-Influxdb-Build", "OSS")
        self.send_header("X-Influxdb-Version", VERSIONS[self.server.recorder.influx])
        if status != 204:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = handle_request


class Server(ThreadingHTTPServer):
    daemon_threads = True


class Recorder:
    """A server at `url` that writes to `path` what it gets, until it is closed."""

    def __init__(self, path, influx=2):
        self.influx = influx
        self.lock = threading.Lock()
        self.file = open(path, "w", encoding="utf-8", newline="\n")
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.recorder = self
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def record(self, request, body, status):
        headers = {}
        for name, value in request.headers.items():
            if name.lower() not in LEFT_OUT:
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        entry = {"method": request.command, "path": request.path, "headers": headers, "answer": status}
        try:
            text = body.decode("utf-8") if encoding == "identity" else None
        except UnicodeDecodeError:
            text = None
        if text is None:
            entry["body_base64"] = base64.b64encode(body).decode("ascii")
        else:
            entry["body"] = text
        with self.lock:
            self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self.file.flush()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def main():
    if "--" not in sys.argv:
        sys.exit(__doc__)
    cut = sys.argv.index("--")
    recorders = {}
    for argument in sys.argv[1:cut]:
        name, _, path = argument.partition("=")
        path, _, influx = path.partition(":")
        recorders[name] = Recorder(path, int(influx or 2))
    environment = os.environ | {name: recorder.url for name, recorder in recorders.items()}
    code = subprocess.run(sys.argv[cut + 1 :], env=environment, check=False).returncode
    for recorder in recorders.values():
        recorder.close()
    sys.exit(code)


if __name__ == "__main__":
    main()
