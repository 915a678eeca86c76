"""Submissions to RobustBench: its files, and the proof that its own code accepts them."""
