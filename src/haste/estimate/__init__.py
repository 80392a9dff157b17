"""Memory and least time of a configuration, by part, before it runs."""

from haste.estimate._encoders import MODELS, Bag, Encoder, Given, Transformer, transformer
from haste.estimate._estimate import Estimate, Phase, estimate, most_labels, parts_at_peak
from haste.estimate._settings import workload_of
from haste.estimate._table import as_json, as_text, size
from haste.estimate.devices import DEVICES, Device, device
from haste.estimate.workload import SYSTEMS, Workload

__all__ = [
    "DEVICES",
    "MODELS",
    "SYSTEMS",
    "Bag",
    "Device",
    "Encoder",
    "Estimate",
    "Given",
    "Phase",
    "Transformer",
    "Workload",
    "as_json",
    "as_text",
    "device",
    "estimate",
    "most_labels",
    "parts_at_peak",
    "size",
    "transformer",
    "workload_of",
]
