"""Several generated networks as one: chosen and calibrated on validation, measured beside what else one could use.

Ensemble                        the module; `PDiffPipeline.ensemble` makes it, `Ensemble.from_pretrained` opens it
Report                          what was measured: `ensemble.report`
describe_ensemble, is_ensemble  what is in a folder or on the Hub, without opening it
"""

from pdiff_hub.ensembles.ensemble import Ensemble
from pdiff_hub.ensembles.figures import Report
from pdiff_hub.ensembles.making import make_ensemble
from pdiff_hub.ensembles.opening import describe_ensemble, is_ensemble

__all__ = ["Ensemble", "Report", "describe_ensemble", "is_ensemble", "make_ensemble"]
