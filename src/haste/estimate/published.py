"""HASTE's Table 1 (arXiv 2606.01117): the data sets, their settings, and the peak memory measured there in GiB.

Settings: fan_in and group size as the paper's text and sparsity say; head, private features, batch, tokens and
momentum as its released code; gradient checkpointing on. What was measured there is the authors' and other systems'
own code on an A100; what is estimated is this package's code doing the same work.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from haste.estimate._encoders import transformer
from haste.estimate._estimate import estimate, most_labels
from haste.estimate.devices import DEVICES
from haste.estimate.workload import SYSTEMS, Workload

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Published:
    """A data set of the table.

    workload: HASTE's settings.
    spartex_fan_in: of Spartex, which trained with AdamW.
    measured: system -> GiB.
    """

    name: str
    workload: Workload
    spartex_fan_in: int
    measured: dict[str, float]

    def of_system(self, system: str) -> Workload:
        """What the system trained."""
        if system != "spartex":
            return self.workload.of_system(system)
        # Without private features its labels read all of the encoder's output.
        wide = replace(self.workload, private_features="none", fan_in=self.spartex_fan_in, rule="adamw")
        return wide.of_system(system)


def _published(
    name: str,
    labels: int,
    batch: int,
    tokens: int,
    positives: float,
    spartex_fan_in: int,
    measured: tuple[float, ...],
    *,
    fan_in: int,
    group_size: int,
    head_ratio: float,
    private: bool,
    momentum: bool,
    encoder: str = "bert-base",
) -> Published:
    workload = Workload(
        num_labels=labels,
        in_features=768,
        fan_in=fan_in,
        group_size=group_size,
        head_ratio=head_ratio,
        private_features="slice" if private else "none",
        rule="momentum" if momentum else "sgd",
        batch_size=batch,
        positives=positives,
        encoder=transformer(encoder, tokens=tokens, checkpointing=True),
    )
    systems = ("dense", "bottleneck", "block-sparse", "spartex", "haste")
    given = dict(zip(systems, measured, strict=True))
    return Published(name=name, workload=workload, spartex_fan_in=spartex_fan_in, measured=given)


_670K = 670_091
TABLE_1 = (
    _published(
        "AmazonTitles-670K",
        _670K,
        256,
        32,
        5.39,
        128,
        (12.5, 3.9, 5.3, 5.0, 3.2),
        fan_in=128,
        group_size=16,
        head_ratio=0.1,
        private=True,
        momentum=False,
    ),
    _published(
        "Amazon-670K",
        _670K,
        64,
        128,
        5.45,
        128,
        (11.9, 4.0, 3.2, 3.7, 2.1),
        fan_in=64,
        group_size=16,
        head_ratio=0.1,
        private=True,
        momentum=True,
    ),
    _published(
        "Amazon-3M",
        2_812_281,
        128,
        128,
        36.17,
        128,
        (39.7, 13.1, 10.1, 13.5, 5.67),
        fan_in=64,
        group_size=32,
        head_ratio=0.02,
        private=False,
        momentum=True,
    ),
    _published(
        "LF-Paper2Keywords-8.6M",
        8_623_847,
        128,
        128,
        9.03,
        64,
        (105.64, 13.24, 17.6, 18.36, 12.5),
        fan_in=64,
        group_size=64,
        head_ratio=0.05,
        private=True,
        momentum=False,
        encoder="distilroberta",
    ),
)
# ELMO's rows of the same table's companion (Table 5): bfloat16, dense, no momentum.
ELMO = {"Amazon-3M": 10.4, "LF-Paper2Keywords-8.6M": 18.8}

_LARGE = Workload(num_labels=10**8, in_features=768, fan_in=64, group_size=64, head_ratio=0.0001, batch_size=128)


def table_1() -> Iterator[str]:
    """Yield the lines of a Markdown table: estimates for every data set and system beside the measurements."""
    yield "| data set | " + " | ".join(SYSTEMS) + " |"
    yield "|---" * (len(SYSTEMS) + 1) + "|"
    for row in TABLE_1:
        cells = []
        for system in SYSTEMS:
            found = estimate(row.of_system(system), DEVICES["a100"])
            published = {**row.measured, "dense-bfloat16": ELMO.get(row.name)}.get(system)
            cells.append(f"{found.peak / _GIB:.2f} ({published or '—'})")
        yield f"| {row.name} | " + " | ".join(cells) + " |"


def hundred_million() -> Iterator[str]:
    """Yield the lines of a Markdown table: 10^8 labels on an H200, the output layer alone."""
    yield "| system | memory, GiB | at its largest | fits an H200 | most labels that fit | least time of a step, ms |"
    yield "|---|---|---|---|---|---|"
    for system in SYSTEMS:
        workload = _LARGE.of_system(system)
        found = estimate(workload, DEVICES["h200"])
        cells = [
            f"{found.total / _GIB:.1f}",
            found.largest.name,
            "yes" if found.fits else "no",
            f"{most_labels(workload, DEVICES['h200']):,}",
            f"{1e3 * found.seconds['output']:.1f}",
        ]
        yield f"| {system} | " + " | ".join(cells) + " |"
