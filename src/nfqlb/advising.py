"""Schedulers that a user wrote in Python: whether a file may be trusted, and how it is exchanged while packets flow.

Strategy: a file is read and run when a change, an application or a reload comes by and it is not what it was; for each
service and role it gets a module of its own, so what it remembers is one service's. It runs in the director, as root:
so it must be a file, in folders, that root alone can write. What is wrong with it is the error of whoever named it;
where somebody else's change comes by, or a director starts, packets are worth more: the one before goes on, or the
built-in scheduler. To run a file takes as long as it likes: it runs in a thread of its own, which nobody waits for
longer than some seconds, and a director's changes do so before they keep others from theirs.

The file defines `pick(flow, servers)`, or a class `Scheduler` with such a method, made without arguments
(nfqlb._core.advisor).
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nfqlb._core.advisor import Advisor, Overrun, interrupt, named
from nfqlb.errors import ConfigError
from nfqlb.model import Intent, Key, Service, is_script
from nfqlb.spawner import distrust

FOLDER = "/etc/nfqlb/schedulers"  # of those that are named without one
ROLES = ("scheduler", "shadow")
RUN_SECONDS = 10.0  # that the code at the top of a file has
END_SECONDS = 0.5  # that it has to end once it was interrupted

log = logging.getLogger("nfqlb")


class Use(NamedTuple):
    service: Key
    role: str
    name: str


class Loaded(NamedTuple):
    """`pick` is None where the file is no scheduler, `error` says why."""

    digest: bytes
    pick: Callable[..., Any] | None
    error: str = ""


class Text(NamedTuple):
    use: Use
    digest: bytes
    text: str


class LateError(ConfigError):
    """A file that did not come to its end."""


Ran = dict[tuple[Use, bytes], Loaded | ConfigError]  # by the digest of the text


class UnrunError(Exception):
    """Some of these texts were not run yet."""

    def __init__(self, texts: Sequence[Text]) -> None:
        super().__init__(f"{len(texts)} to run")
        self.texts = texts


class Advisors:
    """The advisors of all services; `read` gives the text of a scheduler (`trusted`), which may run for `seconds`."""

    def __init__(self, read: Callable[[str], str] | None = None, seconds: float = RUN_SECONDS) -> None:
        self._read, self._seconds = trusted if read is None else read, seconds
        self._advisors: dict[Use, Advisor] = {}
        self._digests: dict[Use, bytes] = {}
        self._fresh: dict[Use, Loaded] = {}
        self._late: dict[tuple[Use, bytes], LateError] = {}  # others' changes do not wait for these again

    def load(self, intent: Intent, strictly: Container[Key]) -> bool:
        """`prepare`, and run what is to be run before."""
        ran: Ran = {}
        while True:
            try:
                return self.prepare(intent, strictly, ran)
            except UnrunError as unrun:
                self.run(unrun.texts, ran)

    def prepare(self, intent: Intent, strictly: Container[Key], ran: Ran) -> bool:
        """Read those of `intent` that are new or changed, for the next `adopt`; whether there are any. ConfigError
        where one of a service that is to be taken `strictly` is no scheduler; UnrunError where some are not `ran` yet.
        """
        fresh: dict[Use, Loaded] = {}
        unrun: list[Text] = []
        errors: list[str] = []
        for use in _uses(intent):
            known = self._digests.get(use)
            try:
                text = self._read(use.name)
                digest = hashlib.sha256(text.encode()).digest()
                if digest == known:
                    continue
                if use.service not in strictly and (use, digest) in self._late:
                    raise self._late[use, digest]
                if (use, digest) not in ran:
                    unrun.append(Text(use, digest, text))
                    continue
                loaded = ran[use, digest]
                if isinstance(loaded, ConfigError):
                    raise loaded
                fresh[use] = loaded
            except ConfigError as error:
                wrong = ConfigError(use.role, use.name, error.problem, error.fix)
                if use.service in strictly:
                    raise wrong from None
                errors.append(f"service {use.service}: {wrong}")
                if known is None:
                    fresh[use] = Loaded(b"", None, str(wrong))
        if unrun:
            raise UnrunError(unrun)
        for text in errors:
            log.error(text)
        self._fresh = fresh
        return bool(fresh)

    def run(self, texts: Iterable[Text], ran: Ran) -> None:
        """Add what these texts are to `ran`. Of the same text that did not come to its end one is enough."""
        late = {digest: one for (_, digest), one in ran.items() if isinstance(one, LateError)}
        for use, digest, text in texts:
            try:
                if digest in late:
                    raise late[digest]
                ran[use, digest] = Loaded(digest, _run(text, use.name, self._seconds))
            except ConfigError as error:
                ran[use, digest] = error
                if isinstance(error, LateError):
                    late[digest] = self._late[use, digest] = error

    def advisor(self, service: Service, role: str) -> Advisor:
        """Who chooses for the service in this role; after `load`."""
        use = Use(service.key, role, getattr(service, role))
        if use not in self._advisors:
            loaded = self._fresh.pop(use)
            self._digests[use] = loaded.digest
            self._advisors[use] = Advisor(use.name, loaded.pick, service.budget * 1000, loaded.error)
        return self._advisors[use]

    def adopt(self, intent: Intent) -> list[str]:
        """Put what was loaded to work, and let go what nobody uses any more; a sentence on each that was exchanged."""
        sentences = []
        for use, loaded in self._fresh.items():
            if use in self._advisors and loaded.pick:
                self._digests[use] = loaded.digest
                self._advisors[use].use(loaded.pick)
                sentences.append(f"{use.name}, the {use.role} of {use.service}, was read again")
        self._fresh = {}
        wanted = set(_uses(intent))
        self._advisors = {use: one for use, one in self._advisors.items() if use in wanted}
        self._digests = {use: digest for use, digest in self._digests.items() if use in wanted}
        self._late = {(use, digest): error for (use, digest), error in self._late.items() if use in wanted}
        for use, one in self._advisors.items():
            one.budget = intent.by_key[use.service].budget * 1000
        return sentences

    def mind(self, told: dict[Use, str]) -> bool:
        """End what does not come back, and log what failed otherwise than was `told`; whether there are any."""
        for use, one in self._advisors.items():
            one.interrupt()
            error = one.statistics().error
            if error != told.get(use, ""):
                told[use] = error
                if error:
                    log.warning("%s, the %s of %s: %s", use.name, use.role, use.service, error)
        return bool(self._advisors)


def trusted(name: str) -> str:
    """The text of a scheduler; ConfigError where somebody else than root could have written it."""
    path = name if name.startswith("/") else f"{FOLDER}/{name}"
    if why := distrust(path):
        raise ConfigError("scheduler", name, why, "have root own it, and its folders, and take others' right to write")
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise ConfigError("scheduler", name, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("scheduler", name, "is not UTF-8 text") from None


def _uses(intent: Intent) -> Iterator[Use]:
    for service in intent.services:
        for role in ROLES:
            if is_script(getattr(service, role)):
                yield Use(service.key, role, getattr(service, role))


def _run(text: str, name: str, seconds: float) -> Callable[..., Any]:
    """What chooses; ConfigError where the file is no scheduler, LateError where it is not over in time. A thread that
    Python cannot end, in a system call for example, is left behind.
    """
    ended: list[Callable[..., Any] | ConfigError] = []

    def run() -> None:
        try:
            ended.append(_chooser(text, name))
        except Overrun:
            pass
        except ConfigError as error:
            ended.append(error)

    thread = threading.Thread(target=run, name=f"runs {name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        interrupt(thread.ident or 0)
        thread.join(END_SECONDS)
    if not ended:
        problem = f"did not come to its end within {seconds:g} seconds"
        raise LateError("scheduler", name, problem, "have its top define only, and do nothing that takes long")
    if isinstance(ended[0], ConfigError):
        raise ended[0]
    return ended[0]


def _chooser(text: str, name: str) -> Callable[..., Any]:
    names: dict[str, Any] = {"__name__": Path(name).stem, "__file__": name}
    try:
        exec(compile(text, name, "exec"), names)
        pick = names["Scheduler"]().pick if "Scheduler" in names else names.get("pick")
    except Overrun:
        raise
    except BaseException as error:  # also of sys.exit()
        raise ConfigError("scheduler", name, f"raises {named(error)}") from None
    if not callable(pick):
        fix = "define pick(flow, servers), or a class Scheduler with such a method"
        raise ConfigError("scheduler", name, "is no scheduler", fix)
    found: Callable[..., Any] = pick
    return found
