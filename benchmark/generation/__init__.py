"""Sampling a model's density, and scoring the images that come out."""
