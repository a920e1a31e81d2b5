"""Predictions of many networks of one architecture, in batches over networks and images."""
