"""The data path: compiled modules and their stubs. Nothing here imports the rest of nfqlb."""
