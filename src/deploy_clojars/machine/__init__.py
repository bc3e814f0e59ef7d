"""What the kernel and other programs say: processes, connections, signals."""
