"""Results on disk: measurements, entries, the store, and the numbers that papers report."""
