"""Ways to get checkpoints: one fine-tune, many seeds trained together, files that exist."""
