"""HTTPS on a real server: another nginx, with HTTP/2 on port 443, that wants a client's certificate; and one's keys."""

from __future__ import annotations

from pathlib import Path

from netns.host import Host, Process

HTTPS = 443
NAME = "web.example.test"
PAGE = "a page of TLS\n"
CONFIGURATION = """
daemon off;
user root;
worker_processes 1;
pid {folder}/tls.pid;
events {{ }}
http {{
    access_log off;
    server {{
        listen 443 ssl http2;
        ssl_certificate {keys}/server.pem;
        ssl_certificate_key {keys}/server.key;
        ssl_client_certificate {keys}/client.pem;
        ssl_verify_client on;
        location = /page {{ return 200 "a page of TLS\\n"; }}
        location = /ill {{ return 503; }}
        location = /slow {{ limit_rate 1; alias {keys}/slow; }}
    }}
}}
"""


def make_keys(host: Host, folder: Path) -> None:
    """Keys and self-signed certificates for the server and for its client, and a page that takes long."""
    folder.mkdir(exist_ok=True)
    for name, subject in (("server", NAME), ("client", "nfqlb")):
        files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        about = ["-subj", f"/CN={subject}", "-addext", f"subjectAltName=DNS:{subject}"]
        host.run(["openssl", "req", "-x509", *kind, *files, *about])
    (folder / "slow").write_text(100 * "slow\n")


def launch(host: Host, keys: Path) -> Process:
    """Start nginx with TLS on a machine."""
    configuration = host.folder / "tls.conf"
    configuration.write_text(CONFIGURATION.format(folder=host.folder, keys=keys))
    return host.spawn(["nginx", "-p", str(host.folder), "-c", str(configuration), "-e", "stderr"], log="tls.log")
