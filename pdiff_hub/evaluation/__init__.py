"""Judges networks: accuracy, similarity of their errors, the measures of the audit, and the figures."""
