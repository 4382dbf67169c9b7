"""nfqlb: the Linux Virtual Server in user space, for machines where nobody can load ip_vs."""

__version__ = "0.1.0"
