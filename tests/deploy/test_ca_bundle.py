"""The chart's variables for a CA bundle, and the libraries that have to read them."""

import contextlib
import importlib.util
import os
import socket
import ssl
import subprocess
import sys
import threading

import pytest
import trustme
from support.charts import environment, golden

BUNDLE = "/etc/r2m/ca/bundle.pem"
POSTGRESQL_ASKS_FOR_TLS = bytes.fromhex("0000000804d2162f")
CLIENTS = {
    "huggingface_hub": """
from huggingface_hub import HfApi
HfApi(endpoint=f"https://localhost:{port}").model_info("org/model", timeout=20)
""",
    "opentelemetry.exporter.otlp.proto.http": """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
provider = TracerProvider()
exporter = OTLPSpanExporter(endpoint=f"https://localhost:{port}/v1/traces", timeout=1)
provider.add_span_processor(SimpleSpanProcessor(exporter))
provider.get_tracer("t").start_span("s").end()
""",
    "s3fs": """
import s3fs
place = f"https://localhost:{port}"
s3fs.S3FileSystem(key="k", secret="s", endpoint_url=place).ls("bucket")
""",
    "psycopg": """
import psycopg
psycopg.connect(f"host=localhost port={port} user=u dbname=d sslmode=verify-full")
""",
}


@contextlib.contextmanager
def answering_with(certificate):
    """A port that speaks TLS; how many handshakes a client has finished, having trusted it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    trusted = []

    def serve():
        while True:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), connection:
                connection.settimeout(20)
                first = connection.recv(8, socket.MSG_PEEK)
                if not first:
                    return
                if first == POSTGRESQL_ASKS_FOR_TLS:
                    connection.recv(8)
                    connection.sendall(b"S")
                with context.wrap_socket(connection, server_side=True) as secure:
                    trusted.append(secure.version())
                    secure.recv(1)
                    secure.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], trusted
        finally:
            socket.create_connection(listener.getsockname()).close()
            thread.join()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_trusts_the_bundle_by_the_charts_variables_and_not_without(client, tmp_path):
    if importlib.util.find_spec(client.partition(".")[0]) is None:
        pytest.skip(f"{client} is an extra")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "bundle.pem")
    given = environment(golden("own"))
    chart = {name: str(tmp_path / "bundle.pem") for name, value in given.items() if value == BUNDLE}
    assert chart
    taken = {*chart, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
    bare = {name: value for name, value in os.environ.items() if name not in taken}
    with answering_with(authority.issue_cert("localhost")) as (port, trusted):

        def call(**variables):
            code = f"port = {port}\n{CLIENTS[client]}"
            command = [sys.executable, "-c", code]
            subprocess.run(command, env={**bare, **variables}, capture_output=True, timeout=100)
            return bool(trusted)

        assert not call()
        assert call(**chart)
