REASON_NAMES: tuple[str, ...]
MEANINGS: dict[str, str]
VERDICT_NAMES: tuple[str, ...]
