SCHEDULERS: tuple[str, ...]
FLAGS: dict[str, dict[str, int]]
