"""Backbones: networks that map images in [0,1] to logits, with the normalisation inside."""

from methods.backbones.classifier import BackboneConfig, Classifier, build

__all__ = ["BackboneConfig", "Classifier", "build"]
