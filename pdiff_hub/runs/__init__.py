"""collect -> train -> generate -> evaluate: each stage alone, or all of a recipe."""

from pdiff_hub.runs.stages import (
    CHECKPOINTS,
    GENERATED,
    audit,
    collect,
    evaluate,
    generate,
    generated_rows,
    run,
    train,
    write_networks,
    write_params,
)

__all__ = [
    "CHECKPOINTS",
    "GENERATED",
    "audit",
    "collect",
    "evaluate",
    "generate",
    "generated_rows",
    "run",
    "train",
    "write_networks",
    "write_params",
]
