"""What one director changes in the kernel's control plane: rules, sets, sysctls, addresses; and how it takes them back.

`kernel.Kernel` is the only door; `plan.Plan` says what should be there. Nothing is imported here: the pure parts of
nfqlb take `plan` without paying for netlink.
"""
