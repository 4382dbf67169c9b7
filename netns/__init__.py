"""Networks in namespaces, for tests, benchmarks and the demo."""

from netns.host import CommandError, Host, Process
from netns.topology import Net

__all__ = ["CommandError", "Host", "Net", "Process"]
