"""How fast, against what: see README.md."""
