"""From what the operator asks to what the data path and the kernel get: registry and compile."""
