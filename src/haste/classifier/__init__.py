"""The scikit-learn face: `haste.Classifier`."""

from haste.classifier._estimator import Classifier as Classifier
