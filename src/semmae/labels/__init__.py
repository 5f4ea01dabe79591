"""Part labels: making them in blocks and processes, reading released ones."""
