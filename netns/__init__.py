"""Networks in namespaces, for tests, benchmarks and the demo.

Nothing is imported here: the programs that run in the namespaces, `python -m netns.ask` and the like, start at once.
"""
