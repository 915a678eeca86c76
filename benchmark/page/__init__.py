"""The parts of the page that :mod:`benchmark.report` writes: what it says, how it is marked up, and its plain files."""
