"""Metrics, one module each; :mod:`benchmark.specs.registry` lists them and says what a module has."""
