"""Judges what comes of requests, on tasks that nothing was trained on, beside every simple way."""

from pdiff_hub.runs.requests.judging import judge_requests
from pdiff_hub.runs.requests.measurements import draw_requests, measured_requests
from pdiff_hub.runs.requests.slope import judge_slope

__all__ = ["draw_requests", "judge_requests", "judge_slope", "measured_requests"]
