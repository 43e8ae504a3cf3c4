"""An S3 server on this machine, and a line to it that fails as lines do."""

from __future__ import annotations

import http.client
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from conftest import environment

#: What may happen to a request.
FAULTS = ("busy", "reset", "lost", "truncated", "slow")

#: Gives the fault that happens to a request, by its number, its method and its path with the query.
Plan = Callable[[int, str, str], str | None]

_REFUSED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Store:
    """A bucket `b` behind a line whose faults `plan` decides."""

    def __init__(self, client: Any, line: ThreadingHTTPServer) -> None:
        self.client, self._line = client, line
        self.plan: Plan | None = None
        #: Requests that came, as "GET /b/key".
        self.requests: list[str] = []
        self._lock = threading.Lock()

    @property
    def variables(self) -> dict[str, str]:
        """What tells a program where the store is."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._line.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def environment(self) -> dict[str, str]:
        """The environment of a program that uses the store."""
        return environment(**self.variables)

    def objects(self, prefix: str) -> dict[str, bytes]:
        """The objects below a prefix, by their names behind it, past the line."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key.removeprefix(f"{prefix}/"): self.get(key) for key in keys}

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket="bucket", Key=key)["Body"].read())

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket="bucket", Key=key, Body=content)

    def unfinished(self) -> list[str]:
        """Keys of uploads in parts that were neither completed nor given up."""
        return [upload["Key"] for upload in self.client.list_multipart_uploads(Bucket="bucket").get("Uploads", [])]

    def fault(self, method: str, path: str) -> str | None:
        with self._lock:
            number = len(self.requests)
            self.requests.append(f"{method} {path}")
            return self.plan(number, method, path) if self.plan else None

    @contextmanager
    def failing(self, plan: Plan) -> Iterator[None]:
        """Requests fail by `plan` for a while."""
        self.plan, self.requests = plan, []
        try:
            yield
        finally:
            self.plan = None


@contextmanager
def store() -> Iterator[Store]:
    """A store with a bucket and nothing in it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()

    class Line(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def handle_any(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            fault = made.fault(self.command, self.path)
            if fault == "slow":
                time.sleep(1.0)
            if fault == "reset":
                return self.reset()
            if fault in ("busy", "refused"):
                return self.answer(503 if fault == "busy" else 403, {}, _BUSY if fault == "busy" else _REFUSED)
            there = http.client.HTTPConnection(host, port)
            try:
                there.request(self.command, self.path, content, dict(self.headers))
                got = there.getresponse()
                body = got.read()
            finally:
                there.close()
            # The server has done it, and nobody hears of it.
            if fault == "lost":
                return self.reset()
            kept = {k: v for k, v in got.getheaders() if k.lower() not in ("content-length", "connection", "date", "server")}
            length = int(got.getheader("content-length") or len(body)) if self.command == "HEAD" else len(body)
            return self.answer(got.status, kept, body, length, cut=fault == "truncated")

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815, these are the names that are called

        def answer(
            self, status: int, headers: dict[str, str], body: bytes, length: int | None = None, cut: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut and body:
                self.wfile.flush()
                self.close_connection = True

        def reset(self) -> None:
            # Closed with what is under way thrown away, the other side gets a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            self.wfile = self.rfile = open("/dev/null", "r+b", buffering=0)  # type: ignore[assignment]  # noqa: SIM115

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # A program that is killed leaves its requests half sent.

    line = Quiet(("127.0.0.1", 0), Line)
    threading.Thread(target=line.serve_forever, daemon=True).start()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    made = Store(client, line)
    client.create_bucket(Bucket="bucket")
    try:
        yield made
    finally:
        line.shutdown()
        server.stop()
