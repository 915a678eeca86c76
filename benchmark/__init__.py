"""Evaluation: subjects, protocols, metrics, entries, leaderboards and the command line."""
