"""From what the operator asks, and what is known of real servers, to what the data path and the kernel get: pure."""
