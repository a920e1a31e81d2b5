"""Checkpoints of one network on one path: trained, then trained on, a checkpoint every few steps."""

from pdiff_hub.collect.finetune.collecting import collect_finetune
from pdiff_hub.collect.finetune.config import FinetuneConfig

__all__ = ["FinetuneConfig", "collect_finetune"]
