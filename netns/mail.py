"""Mail on a real server: Postfix takes it by SMTP into the Maildirs on the storage, Dovecot shows them by IMAP.

Also the client's side, as `python -m netns.mail VERB ADDRESS ...` in its namespace; it prints JSON:

send ADDRESS SUBJECT...      one message for each subject, each on a connection of its own: [server, ...]
read ADDRESS COUNT           the mailbox, on that many connections one after the other: [[server, [subject, ...]], ...]
"""

from __future__ import annotations

import imaplib
import json
import os
import pwd
import smtplib
import sys
from collections.abc import Callable
from email import message_from_bytes
from email.message import EmailMessage
from typing import Any

from netns.host import Host
from netns.mounts import PASSWORD, SHARED, UID, USER, Mounting

SMTP, IMAP = 25, 143
DOMAIN = "example.test"
LIBEXEC = "/usr/lib/postfix/sbin"

MAIN = """
compatibility_level = 3.6
maillog_file = /dev/stdout
myhostname = {name}.{domain}
inet_interfaces = all
inet_protocols = all
mydestination =
mynetworks =
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {mail}
virtual_mailbox_maps = inline:{{{user}@{domain}={user}/}}
alias_maps =
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{uid}
smtpd_relay_restrictions = reject_unauth_destination
smtpd_peername_lookup = no
disable_dns_lookups = yes
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
"""
MASTER = """
smtp      inet  n  -  n  -  -  smtpd
cleanup   unix  n  -  n  -  0  cleanup
qmgr      unix  n  -  n  300  1  qmgr
rewrite   unix  -  -  n  -  -  trivial-rewrite
bounce    unix  -  -  n  -  0  bounce
defer     unix  -  -  n  -  0  bounce
trace     unix  -  -  n  -  0  bounce
verify    unix  -  -  n  -  1  verify
proxymap  unix  -  -  n  -  -  proxymap
anvil     unix  -  -  n  -  1  anvil
error     unix  -  -  n  -  -  error
retry     unix  -  -  n  -  -  error
virtual   unix  -  n  n  -  -  virtual
postlog   unix-dgram  n  -  n  -  1  postlogd
"""
QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "maildrop", "pid", "private"),
    *("public", "saved", "trace"),
)
DOVECOT = """
protocols = imap
base_dir = /run/dovecot
state_dir = /run/dovecot
log_path = /dev/stderr
ssl = no
disable_plaintext_auth = no
login_greeting = {name} ready
mail_location = maildir:{mail}/%u:INDEX=MEMORY
mail_fsync = always
mmap_disable = yes
passdb {{
    driver = pam
}}
userdb {{
    driver = passwd
}}
service imap-login {{
    service_count = 0
    inet_listener imaps {{
        port = 0
    }}
}}
"""


class PostOffice:
    """Postfix on port 25 and Dovecot on port 143; both say the server's name when a client connects."""

    def __init__(self, host: Mounting) -> None:
        self.host = host
        self.postfix, self.spool, self.lib = (host.own(f"postfix-{kind}") for kind in ("etc", "spool", "lib"))
        self.mounts = {"/etc/postfix": self.postfix, "/var/spool/postfix": self.spool, "/var/lib/postfix": self.lib}
        about = {"name": host.name, "domain": DOMAIN, "mail": SHARED / "mail", "user": USER, "uid": UID}
        (self.postfix / "main.cf").write_text(MAIN.format(**about))
        (self.postfix / "master.cf").write_text(MASTER)
        self.dovecot = host.own("dovecot") / "dovecot.conf"
        self.dovecot.write_text(DOVECOT.format(**about))
        postfix = pwd.getpwnam("postfix")
        for queue in QUEUES:
            (self.spool / queue).mkdir()
        for path in (self.lib, *self.spool.iterdir()):
            os.chown(path, postfix.pw_uid, postfix.pw_gid)

    def start(self) -> None:
        self.host.spawn([f"{LIBEXEC}/master", "-s"], log="postfix.log")
        self.host.spawn(["dovecot", "-F", "-c", str(self.dovecot)])


def send(client: Host, address: str, subjects: list[str]) -> list[str]:
    """A message for each subject, each on a connection of its own: the servers that took them."""
    return [str(server) for server in _ask(client, "send", address, *subjects)]


def read(client: Host, address: str, count: int = 1) -> list[tuple[str, list[str]]]:
    """The mailbox `count` times, each on a connection of its own: the server, and the subjects in sorted order."""
    return [(server, subjects) for server, subjects in _ask(client, "read", address, str(count))]


def _ask(client: Host, *words: str) -> list[Any]:
    answer: list[Any] = json.loads(client.run([sys.executable, "-m", "netns.mail", *words], timeout=60).stdout)
    return answer


def _send(address: str, *subjects: str) -> list[str]:
    servers = []
    for subject in subjects:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = f"writer@{DOMAIN}", f"{USER}@{DOMAIN}", subject
        message.set_content(f"About {subject}.")
        with smtplib.SMTP(timeout=10) as connection:
            _, greeting = connection.connect(address, SMTP)
            connection.send_message(message)
            servers.append(greeting.decode().partition(".")[0])
    return servers


def _read(address: str, count: str) -> list[tuple[str, list[str]]]:
    seen = []
    for _ in range(int(count)):
        with imaplib.IMAP4(address, IMAP, 10) as connection:
            server = connection.welcome.decode().split()[-2]
            connection.login(USER, PASSWORD)
            _, [messages] = connection.select(readonly=True)
            parts = connection.fetch("1:*", "(RFC822.HEADER)")[1] if messages != b"0" else []
            headers = [message_from_bytes(part[1]) for part in parts if isinstance(part, tuple)]
            seen.append((server, sorted(str(header["Subject"]) for header in headers)))
    return seen


VERBS: dict[str, Callable[..., object]] = {"send": _send, "read": _read}

if __name__ == "__main__":
    print(json.dumps(VERBS[sys.argv[1]](*sys.argv[2:])))
