"""The estimate of a workload: what is held throughout, what every phase of training adds, what a step costs."""

from dataclasses import dataclass, replace

from haste.estimate._encoders import Encoder
from haste.estimate._layers import weight_gradient
from haste.estimate.devices import Device
from haste.estimate.workload import MOST_LABELS, Workload

_ORDER = 16  # bytes a label: which label a row is, and the reverse
_ORDERING = 17  # bytes a label while that is set
_CLUSTER = 8  # bytes a label: its cluster
_PAIR = 80  # bytes a positive of the batch, while they are checked and sorted
_KEPT = 12e6  # what the C library keeps of buffers that came and went, CPU; measured
_KEPT_BLOCK = 32 * 2**20  # the largest block that it keeps
_PART = 512 * 2**20  # bytes of a checkpoint's file, which reading maps
_EVALUATED = 130e6  # what evaluation, checkpoints and reading the data leave with the C library; measured


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of training and what it holds beside what is held throughout, bytes by part."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Memory by part and the cost of a step.

    held: bytes throughout, by part.
    phases: what they add, the first to the last.
    framework: bytes of Python and PyTorch, or of CUDA, before there is a model.
    flop, traffic: of one step, for "output" and "encoder".
    seconds: the longer of FLOP and bytes at the device's roofs, for each: below it no step can be.
    """

    workload: Workload
    device: Device
    held: dict[str, float]
    phases: tuple[Phase, ...]
    framework: float
    flop: dict[str, float]
    traffic: dict[str, float]
    seconds: dict[str, float]

    @property
    def largest(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> float:
        """Bytes at most, without the framework."""
        return sum(self.held.values()) + self.largest.total

    @property
    def total(self) -> float:
        """Bytes at most, with the framework."""
        return self.peak + self.framework

    @property
    def mapped(self) -> float:
        """Bytes of documents beside the total: the system may drop their pages and read them again."""
        return self.workload.documents if self.device.kind == "cpu" else 0.0

    @property
    def fits(self) -> bool:
        """Whether the device holds it."""
        return self.total <= self.device.memory


def estimate(workload: Workload, device: Device, *, run: bool = False) -> Estimate:
    """Estimate a workload on a device. Labels of the data set and evaluation are not counted.

    run: count the end of `haste train` too, which reads the best model back.
    """
    batch, auxiliary = workload.batch_size, workload.auxiliary()
    encoder, layers = _encoders(workload), workload.layers()
    held = _held(workload)
    phases = _phases(workload, device.kind)
    if run and device.kind == "cpu":
        model = sum(size for name, size in held.items() if not name.endswith("optimizer"))
        parts = {"best model read back": model + min(_PART, model), "left by evaluation": _EVALUATED}
        phases.append(Phase(name="end of run", parts=parts))
    layers += [auxiliary] if auxiliary is not None else []
    flop = {"output": sum(layer.flop(batch) for layer in layers), "encoder": sum(e.flop(batch) for e in encoder)}
    traffic = {
        "output": sum(layer.traffic(batch) for layer in layers),
        "encoder": sum(e.traffic(batch) for e in encoder),
    }
    low = getattr(workload.encoder, "computed", 4) == 2 or _low_precision(workload)
    rates = {"output": workload.dtype, "encoder": "bfloat16" if low else "float32"}
    return Estimate(
        workload=workload,
        device=device,
        held=held,
        phases=tuple(phases),
        framework=device.framework,
        flop=flop,
        traffic=traffic,
        seconds={
            part: max(flop[part] / getattr(device, rate), traffic[part] / device.bandwidth)
            for part, rate in rates.items()
        },
    )


def _encoders(workload: Workload) -> list[Encoder]:
    return [*([workload.encoder] if workload.encoder is not None else []), *workload.between()]


def _held(workload: Workload) -> dict[str, float]:
    held: dict[str, float] = {}
    for sizes in (*(layer.held() for layer in workload.layers()), *(part.held() for part in _encoders(workload))):
        for name, size in sizes.items():
            held[name] = held.get(name, 0.0) + size
    held["label order"] = _ORDER * workload.num_labels
    auxiliary = workload.auxiliary()
    if auxiliary is not None:
        held["auxiliary"] = sum(auxiliary.held().values()) + _CLUSTER * workload.num_labels
    return held


def _phases(workload: Workload, kind: str) -> list[Phase]:
    batch, encoder, layers, auxiliary = (
        workload.batch_size,
        _encoders(workload),
        workload.layers(),
        workload.auxiliary(),
    )
    gradients = sum(part.gradients(batch) for part in encoder)
    gradients += 0.0 if auxiliary is None else weight_gradient(auxiliary)
    kept = _KEPT + min(gradients, _KEPT_BLOCK) if kind == "cpu" else 0.0
    activations = sum(part.activations(batch, kind) for part in encoder)
    features = _features(workload, kind)
    of_output = 0.0 if workload.fused else sum(weight_gradient(layer) for layer in layers)
    construction = max(layer.construction(kind) for layer in layers)
    step = {
        "encoder activations": activations,
        "features and their gradient": features,
        "step buffers": max(layer.step_buffers(batch, kind) for layer in layers) + kept,
        "positives": _PAIR * batch * workload.positives,
        "output gradients": of_output,
    }
    phases = [
        # What an allocator keeps of it stays until something else takes its place.
        Phase(name="construction", parts={"construction": max(construction, _ORDERING * workload.num_labels)}),
        Phase(name="output step", parts=step),
    ]
    if encoder or auxiliary is not None:
        backward = {
            # Layer by layer activations go and gradients come.
            "encoder activations": max(activations - gradients, 0.0),
            "encoder gradients": gradients,
            "encoder buffers": max((part.backward(batch, kind) for part in encoder), default=0.0)
            + (_KEPT if kind == "cpu" else 0.0),
            "features and their gradient": features / 2,
            "output gradients": of_output,
        }
        phases.append(Phase(name="encoder step", parts=backward))
    rewiring = max(layer.rewire_buffers(workload.regrow, kind) for layer in layers)
    if rewiring:
        phases.append(Phase(name="rewiring", parts={"rewiring": rewiring}))
    return phases


def most_labels(workload: Workload, device: Device) -> int:
    """Return how many labels fit the device, all else as it is; 0 where not even one does."""
    low, high = 0, MOST_LABELS + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = estimate(replace(workload, num_labels=middle), device).fits
        low, high = (middle, high) if fits else (low, middle)
    return low


def _features(workload: Workload, kind: str) -> float:
    """Features, the transposed copy that the output layer reads, their gradient in float32 and as it leaves."""
    numbers = workload.batch_size * workload.in_features
    element = 2 if kind != "cpu" and _low_precision(workload) else 4
    transposed = 2 if kind != "cpu" and workload.dtype == "bfloat16" else 4
    return numbers * (2 * element + transposed + 4.0)


def _low_precision(workload: Workload) -> bool:
    return getattr(workload.encoder, "element", 4) == 2


def parts_at_peak(found: Estimate) -> dict[str, float]:
    """Bytes by part at the moment that takes most, the framework's too; parts of nothing left out."""
    parts = {**found.held, **found.largest.parts, "framework": found.framework}
    return {name: size for name, size in parts.items() if size}
