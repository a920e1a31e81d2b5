"""A pipeline's folder: how it is opened, and what its files say of it."""
