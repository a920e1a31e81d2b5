"""Checkpoints of one network on one training path: train it, then train on and keep one every few steps."""

from pdiff_hub.collect.finetune.collecting import collect_finetune
from pdiff_hub.collect.finetune.config import FinetuneConfig

__all__ = ["FinetuneConfig", "collect_finetune"]
