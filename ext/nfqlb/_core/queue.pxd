"""The engine that drives NFQUEUE. The only file that knows netlink."""
