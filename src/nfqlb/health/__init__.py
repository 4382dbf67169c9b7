"""Which real servers are well: `machine` decides, `checks` ask, `runner` keeps asking."""
