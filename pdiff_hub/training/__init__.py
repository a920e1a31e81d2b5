"""Trains a pipeline on a set of checkpoints: the autoencoder first, then the denoiser on its latents."""
