"""Everyone's weights, in and out; and the parameters of one run as the start of another."""

from vitlab.weights.filling import LoadReport
from vitlab.weights.loading import Loaded, load
from vitlab.weights.saving import save

__all__ = ["LoadReport", "Loaded", "load", "save"]
