"""Three ways to get checkpoints: fine-tune one network, train many seeds together, import files that exist."""
