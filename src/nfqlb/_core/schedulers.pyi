SCHEDULERS: tuple[str, ...]
