STATE_NAMES: tuple[str, ...]
TRANSITIONS: dict[str, dict[str, str]]
TIMEOUTS: tuple[int, ...]
