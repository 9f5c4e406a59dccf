"""Error bars one can rely on, and a flag for structures unlike the training data."""

from hipnn_pyg.uncertainty.calibrated import CalibratedModel, CalibratedPrediction
from hipnn_pyg.uncertainty.conformal import LEVELS, ConformalIntervals, conformal_quantile
from hipnn_pyg.uncertainty.distance import FeatureStatistics, recorded_features
from hipnn_pyg.uncertainty.error_bars import GEOMETRIES, GIVEN, ErrorBars, Geometry, Judgement
from hipnn_pyg.uncertainty.sample import Sample, observe, take_sample

__all__ = [
    "GEOMETRIES",
    "GIVEN",
    "LEVELS",
    "CalibratedModel",
    "CalibratedPrediction",
    "ConformalIntervals",
    "ErrorBars",
    "FeatureStatistics",
    "Geometry",
    "Judgement",
    "Sample",
    "conformal_quantile",
    "observe",
    "recorded_features",
    "take_sample",
]
