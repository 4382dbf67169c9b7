SCHEDULERS: tuple[str, ...]
FLAGS: dict[str, tuple[str, ...]]
