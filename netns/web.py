"""A real server: nginx in its own namespace, whose pages come from the storage that all of them share."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path

from netns.host import Host, Process

CONFIGURATION = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    types {{ text/html html; text/plain txt; }}
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_max_body_size 0;
    client_body_temp_path {storage}/.incoming;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 80 backlog=4096;
        listen [::]:80 backlog=4096;
        root {storage};
        add_header X-Server {name} always;
        location = /whoami {{ return 200 "{name} $remote_addr\\n"; }}
        location /incoming/ {{ dav_methods PUT; create_full_put_path on; }}
    }}
}}
"""


class Storage(Host):
    """The storage of the real servers: one directory that every one of them serves from and uploads to."""

    FILES = "files"

    def __init__(self, tag: str, name: str, folder: Path) -> None:
        super().__init__(tag, name, folder)
        self.files = self.folder / self.FILES
        self.files.mkdir(parents=True)

    def write(self, name: str, text: str) -> None:
        """Replace a page."""
        self.replace(self.files / name, text)

    def replace(self, file: Path, text: str) -> None:
        """Write it at once: no reader sees half of it."""
        new = file.with_name(f".{file.name}.new")
        new.write_text(text)
        new.rename(file)

    def fill(self, name: str, size: int) -> str:
        """A file of `size` random-looking bytes; its SHA-256."""
        block, total = hashlib.shake_256(name.encode()).digest(1 << 20), hashlib.sha256()
        with (self.files / name).open("wb") as file:
            for number, start in enumerate(range(0, size, len(block))):
                part = (number.to_bytes(8) + block[8:])[: size - start]
                file.write(part)
                total.update(part)
        return total.hexdigest()

    def sha256(self, name: str) -> str:
        with (self.files / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def launch(host: Host, pages: Path) -> Process:
    """Start nginx on a machine, with pages from that folder there."""
    configuration = host.folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=host.folder, storage=pages, name=host.name))
    return host.spawn(["nginx", "-p", str(host.folder), "-c", str(configuration), "-e", "stderr"])


class WebServer(Host):
    """nginx on port 80: /whoami names the server and the client, PUT works below /incoming/."""

    def __init__(self, tag: str, name: str, folder: Path, storage: Storage) -> None:
        super().__init__(tag, name, folder)
        self.storage = storage
        self.nginx: Process | None = None

    @property
    def pages(self) -> Path:
        """Where nginx finds them on this machine."""
        return self.storage.files

    def start(self) -> None:
        """Start nginx and return when it answers."""
        self.launch()
        self.listens(80)

    def launch(self) -> None:
        self.nginx = launch(self, self.pages)

    def kill(self) -> None:
        """End nginx as a crash would: master and workers at once."""
        assert self.nginx is not None
        workers = self.run(["pgrep", "-P", str(self.nginx.pid)]).stdout.split()
        self.run(["kill", "-KILL", str(self.nginx.pid), *workers])
        self.nginx.end(signal.SIGKILL)
