"""Speak to a director through its API socket.

Answers come as the JSON says, errors as the exceptions of nfqlb.errors that the director raised. Standard library
only, and little of it, since every command pays for it: http.client would cost 40 ms more, most of it for e-mail
headers and TLS, which a unix socket never sees.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from nfqlb.errors import (
    ConfigError,
    ConfigErrors,
    ConflictError,
    ExistsError,
    KernelError,
    MissingError,
    NfqlbError,
    NotFoundError,
    TakenError,
    UnreachableError,
)

TIMEOUT = 60.0
KINDS = {
    kind.__name__: kind
    for kind in (ConflictError, ExistsError, KernelError, MissingError, NotFoundError, TakenError, UnreachableError)
}


class Client:
    """One request per call; `path` is the API socket. With `revision` it changes only that one: ConflictError where
    there is another.
    """

    def __init__(self, path: str, timeout: float = TIMEOUT, revision: int | None = None) -> None:
        self.path, self.timeout, self.revision = path, timeout, revision

    def services(self) -> Any:
        return self.call("GET", "/v1/services")

    def connections(self, limit: int = 0) -> Any:
        return self.call("GET", f"/v1/connections?limit={limit}")

    def health(self) -> Any:
        return self.call("GET", "/v1/health")

    def schedulers(self) -> Any:
        return self.call("GET", "/v1/schedulers")

    def stats(self) -> Any:
        return self.call("GET", "/v1/stats")

    def reasons(self) -> Any:
        return self.call("GET", "/v1/reasons")

    def daemon(self) -> Any:
        return self.call("GET", "/v1/daemon")

    def add_service(self, service: Mapping[str, object]) -> Any:
        return self.call("POST", "/v1/services", service)

    def edit_service(self, key: str, changed: Mapping[str, object]) -> Any:
        return self.call("PATCH", _service(key), changed)

    def delete_service(self, key: str) -> Any:
        return self.call("DELETE", _service(key))

    def add_real(self, key: str, real: Mapping[str, object]) -> Any:
        return self.call("POST", f"{_service(key)}/reals", real)

    def edit_real(self, key: str, endpoint: str, changed: Mapping[str, object]) -> Any:
        return self.call("PATCH", f"{_service(key)}/reals/{_quoted(endpoint)}", changed)

    def delete_real(self, key: str, endpoint: str) -> Any:
        return self.call("DELETE", f"{_service(key)}/reals/{_quoted(endpoint)}")

    def drain(self, key: str, endpoint: str, timeout: float, keep: bool) -> Any:
        order = {"timeout": timeout, "keep": keep}
        return self.call("POST", f"{_service(key)}/reals/{_quoted(endpoint)}/drain", order)

    def maintain(self, key: str, endpoint: str, on: bool, why: str = "") -> Any:
        order = {"on": on, "why": why}
        return self.call("PUT", f"{_service(key)}/reals/{_quoted(endpoint)}/maintenance", order)

    def drains(self) -> Any:
        return self.call("GET", "/v1/drains")

    def clear(self) -> Any:
        return self.call("DELETE", "/v1/services")

    def zero(self, key: str = "") -> Any:
        return self.call("POST", f"{_service(key)}/zero" if key else "/v1/zero")

    def service(self, key: str) -> Any:
        return self.call("GET", _service(key))

    def set_timeouts(self, timeouts: Mapping[str, int]) -> Any:
        return self.call("PUT", "/v1/timeouts", timeouts)

    def set_answers(self, answers: Mapping[str, str | bool]) -> Any:
        return self.call("PUT", "/v1/answers", answers)

    def sync(self) -> Any:
        return self.call("GET", "/v1/sync")["sync"]

    def set_sync(self, sync: Mapping[str, object]) -> Any:
        return self.call("PUT", "/v1/sync", sync)

    def stop_sync(self) -> Any:
        return self.call("DELETE", "/v1/sync")

    def set_options(self, options: Mapping[str, int | bool]) -> Any:
        return self.call("PUT", "/v1/options", options)

    def config(self) -> Any:
        return self.call("GET", "/v1/config")

    def apply(
        self, config: Mapping[str, object], *, plan: bool = False, confirm_within: int = 0, file: str = ""
    ) -> Any:
        query = f"plan={str(plan).lower()}&file={_quoted(file)}"
        if confirm_within:
            query += f"&confirm_within={confirm_within}"
        return self.call("PUT", f"/v1/config?{query}", config)

    def confirm(self) -> Any:
        return self.call("POST", "/v1/config/confirm")

    def rollback(self) -> Any:
        return self.call("POST", "/v1/config/rollback")

    def reload(self) -> Any:
        return self.call("POST", "/v1/config/reload")

    def openapi(self) -> Any:
        return self.call("GET", "/v1/openapi.json")

    def events(self, since: int = 0, follow: float = 0) -> Iterator[Any]:
        """What happened after the event number `since`, and for `follow` seconds what happens."""
        try:
            with self._connection() as connection:
                connection.settimeout(self.timeout + follow)
                self._send(connection, "GET", f"/v1/events?since={since}&follow={follow:g}", b"")
                with connection.makefile("rb") as file:
                    status = int(file.readline().split()[1])
                    while file.readline().strip():
                        pass
                    if status >= 400:
                        raise _error(json.loads(file.read())["error"])
                    for line in file:
                        yield json.loads(line)
        except OSError as error:
            raise UnreachableError(self._why(error)) from None
        except (ValueError, IndexError):
            raise UnreachableError(self._ended()) from None

    def call(self, method: str, target: str, body: object = None) -> Any:
        """The decoded answer, or the director's error."""
        try:
            answer = self._exchange(method, target, b"" if body is None else json.dumps(body).encode())
        except OSError as error:
            raise UnreachableError(self._why(error)) from None
        if not answer:
            raise UnreachableError(f"the director on {self.path} ended before it answered; see its log")
        try:
            head, _, content = answer.partition(b"\r\n\r\n")
            status, decoded = int(head.split()[1]), json.loads(content)
        except (ValueError, IndexError):
            raise UnreachableError(self._ended()) from None
        if status >= 400:
            raise _error(decoded["error"])
        return decoded

    def _exchange(self, method: str, target: str, body: bytes) -> bytes:
        """One request of HTTP/1.0, which leaves nothing to negotiate: the answer ends where the connection does."""
        with self._connection() as connection:
            self._send(connection, method, target, body)
            with connection.makefile("rb") as file:
                return file.read()

    def _connection(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            connection.connect(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _send(self, connection: socket.socket, method: str, target: str, body: bytes) -> None:
        head = f"{method} {target} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        if self.revision is not None and method != "GET":
            head += f'If-Match: "{self.revision}"\r\n'
        connection.sendall(head.encode() + b"\r\n" + body)

    def _ended(self) -> str:
        return f"what answers on {self.path} is not a director of nfqlb, or it ended"

    def _why(self, error: OSError) -> str:
        match error:
            case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
                return f"no director answers on {self.path}; start one with `nfqlb run`, or name its socket with --api"
            case PermissionError():
                return f"this user may not use {self.path}; use root, or a member of the group that owns the socket"
            case TimeoutError():
                return f"the director on {self.path} did not answer within {self.timeout:g} s; see its log"
            case ConnectionError():
                return f"the director on {self.path} ended before it answered; see its log"
            case _:
                return f"cannot reach a director on {self.path}: {error}"


def _service(key: str) -> str:
    return f"/v1/services/{_quoted(key)}"


def _quoted(text: str) -> str:
    """As one segment of a path."""
    from urllib.parse import quote

    return quote(text, safe="")


def _error(error: Mapping[str, Any]) -> NfqlbError:
    kind = error["kind"]
    if kind == "ConfigError":
        return _config_error(error)
    if kind == "ConfigErrors":
        return ConfigErrors([_config_error(one) for one in error["errors"]])
    if kind in KINDS:
        return KINDS[kind](error["message"])
    return UnreachableError(f"the director failed over this request: {error['message']}; its log says more")


def _config_error(error: Mapping[str, Any]) -> ConfigError:
    return ConfigError(error["field"], error["value"], error["problem"], error["fix"])
