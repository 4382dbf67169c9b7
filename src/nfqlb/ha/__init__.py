"""Several directors for the same VIPs: which of them has these now, and what they tell each other."""
