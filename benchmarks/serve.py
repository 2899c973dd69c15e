"""How fast a frozen file is served: against nginx with sendfile, the very same bytes over the loopback.

One reader at a time, and sixteen at once. Both take turns; the readers drop what they get, because they share the
machine with what they measure.
"""

import asyncio
import hashlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from benchmarks.curate import freezer_of
from benchmarks.report import Figure, spread
from benchmarks.rows import GROUP_SIZE, RUNS, Size, run_name
from benchmarks.sql import served
from benchmarks.store import fill
from curation.recipe import Recipe, Shape
from service.parts import Store

ROLLOUTS = 200_000
"""For a file of 290 MB."""
RECIPE = Recipe(runs=tuple(run_name(i) for i in range(RUNS)), shape=Shape.GROUPS)
FILE = "train.parquet"
REPEATS = {1: 25, 16: 9}
"""By how many read at once."""
NGINX = """
daemon off;
user root;  # who can read the file; of no meaning where somebody else starts it
worker_processes auto;
pid {folder}/pid;
events {{}}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path {folder}/body;
    fastcgi_temp_path {folder}/fastcgi;
    proxy_temp_path {folder}/proxy;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
    }}
}}
"""


def run() -> dict[str, Figure]:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        sys.exit("refinery bench serve: nginx is the yardstick, and it is not installed")
    with tempfile.TemporaryDirectory() as made:
        data = Path(made) / "data"
        file = _frozen(data)
        with served(data) as service, _nginx(nginx, file.parent, Path(made)) as other:
            return _measure(f"{service}/v1/datasets/d@1/{FILE}", f"{other}/{FILE}", file)


def _frozen(data: Path) -> Path:
    fill(data, Size(ROLLOUTS // GROUP_SIZE))
    store = Store.open(data)
    dataset = asyncio.run(freezer_of(store, data / "datasets").freeze("d", RECIPE))
    store.close()
    return data / "datasets" / dataset.dataset_id / FILE


@contextmanager
def _nginx(nginx: str, root: Path, folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, root=root))
    process = subprocess.Popen([nginx, "-e", "stderr", "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if process.poll() is not None:
                    raise RuntimeError("nginx did not start") from None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _measure(service: str, nginx: str, file: Path) -> dict[str, Figure]:
    said = hashlib.sha256(file.read_bytes()).digest()
    for url in (service, nginx):  # which warms both
        with urlopen(url) as body:
            if hashlib.file_digest(body, "sha256").digest() != said:
                raise AssertionError(f"{url} is not {file}")
    size = file.stat().st_size
    figures = {"file_mb": spread([size / 1e6], "MB")}
    for clients, repeats in REPEATS.items():
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(_rate(service, clients, size))
            theirs.append(_rate(nginx, clients, size))
        figures[f"service_rate_{clients}"] = spread(ours, "MB/s")
        figures[f"nginx_rate_{clients}"] = spread(theirs, "MB/s")
        figures[f"ratio_{clients}"] = spread([a / b for a, b in zip(ours, theirs, strict=True)], "x")
    return figures


def _rate(url: str, clients: int, size: int) -> float:
    """Of all together, in MB/s."""
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        answers = list(pool.map(_read, [url] * clients))
        seconds = time.perf_counter() - began
    if min(answers) < size:
        raise AssertionError(f"{url} broke off")
    return clients * size / seconds / 1e6


def _read(url: str) -> int:
    """How long the answer was, in bytes."""
    address = urlsplit(url)
    request = f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n"
    buffer, read = bytearray(2**20), 0
    with socket.create_connection((str(address.hostname), address.port or 80)) as connection:
        connection.sendall(request.encode())
        while got := connection.recv_into(buffer):
            read += got
    return read
