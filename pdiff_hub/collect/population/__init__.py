"""Checkpoints of many networks: seeds trained together from scratch as one batched program."""

from pdiff_hub.collect.population.collecting import PopulationConfig, collect_population

__all__ = ["PopulationConfig", "collect_population"]
