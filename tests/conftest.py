"""What all tests share: how hard hypothesis tries."""

from __future__ import annotations

import hypothesis

from tests.sizes import EXAMPLES

# the same examples in every run, and no deadline: a shared machine may pause at any time
hypothesis.settings.register_profile("nfqlb", max_examples=EXAMPLES, deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("nfqlb")
