"""Judging networks: predictions, similarity of their errors, the audit's measures and the figures."""
