"""Analyses on top of runs: reproducing a paper's tables, explaining gaps, the power of the masking checks."""
