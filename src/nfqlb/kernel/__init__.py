"""What one director changes in the kernel's control plane: rules, sets, sysctls, addresses; and how it takes them back.

`plan.Plan` says what should be there, and `kernel.Kernel` makes it so; the other doors are `neighbours` (where packets
go), `offload`, and what is only listened to. Nothing is imported here: the pure parts of nfqlb take `plan` without
paying for netlink.
"""
