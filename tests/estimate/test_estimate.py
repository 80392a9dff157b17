import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from haste import optim
from haste.config import Config
from haste.estimate import (
    DEVICES,
    SYSTEMS,
    Bag,
    Device,
    Given,
    Transformer,
    Workload,
    _layers,
    as_json,
    as_text,
    device,
    estimate,
    most_labels,
    transformer,
    workload_of,
)
from haste.estimate.published import hundred_million, table_1
from haste.nn import Auxiliary, HeadTail, build_model

PAGE = Path(__file__).parents[2] / "docs/estimate.md"
CPU = Device(name="cpu", memory=8e9, bandwidth=1e10, bfloat16=1e11, float32=1e11, source="for a test")
SMALL = Workload(num_labels=1003, in_features=64, fan_in=16, group_size=8, head_ratio=0.1, batch_size=4)


def nbytes(*modules: nn.Module) -> int:
    return sum(x.nbytes for module in modules for x in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize(
    "changes", [{}, {"dtype": "float32", "group_size": 1}, {"private_features": "slice"}, {"rates": True}]
)
@pytest.mark.parametrize("rule", ["sgd", "momentum", "adamw"])
def test_what_is_held_is_what_the_layers_hold(changes: dict[str, object], rule: str) -> None:
    workload = replace(SMALL, rule=rule, **changes)
    output = HeadTail(
        64,
        1003,
        num_head_labels=workload.num_head_labels,
        fan_in=16,
        group_size=workload.group_size,
        private_features=workload.private_features,
        dtype=getattr(torch, workload.dtype),
    )
    parameters = list(output.layer_parameters())
    update = optim.AdamW(parameters, lr=0.1) if rule == "adamw" else optim.SGD(parameters, lr=0.1)
    if rule == "momentum":
        update = optim.SGD(parameters, lr=0.1, momentum=0.9)
    if workload.rates:
        output.set_rates(update, torch.ones(1003))
    positives = (torch.arange(0, 9, 2), torch.arange(8))
    output.step(torch.randn(4, 64, requires_grad=True), positives, update).backward()
    states = sum(x.nbytes for state in update.state.values() for x in state.values() if x.dim())
    held = estimate(workload, CPU).held
    assert sum(held.values()) == nbytes(output) + states
    assert held["output optimizer"] == states


def test_what_is_held_of_a_run_is_what_its_model_holds() -> None:
    config = Config.from_dict(
        {
            "data": {"path": "x"},
            "encoder": {"features": 32, "hidden": 24, "dtype": "bfloat16"},
            "output": {"fan_in": 8, "group_size": 4, "intermediate": 48, "private_features": "projection"},
            "auxiliary": {"clusters": 10},
            "optim": {"encoder": {"name": "kahan_adamw"}, "output": {"rarity": 0.5}},
        }
    )
    workload = workload_of(config, num_labels=200, num_inputs=500)
    held = estimate(workload, CPU).held
    model = build_model(config, num_inputs=500, num_labels=200)
    parameters = model.encoder_parameters()
    assert held["encoder weights"] == sum(x.nbytes for x in parameters)
    assert held["encoder optimizer"] == 10 * sum(x.numel() for x in parameters)
    assert held["auxiliary"] == nbytes(Auxiliary(32, 200, 10))
    assert held["output optimizer"] == sum(layer.bias.nbytes for layer in model.output.layers())  # rates
    layers = sum(nbytes(layer) for layer in model.output.layers()) + 16 * 200
    parts = ("output weights", "output biases", "output indices", "label order")
    assert sum(held[name] for name in parts) == layers


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", ["cpu", "h200", "l4"])
def test_every_system_has_an_estimate_on_every_device(system: str, name: str) -> None:
    on = CPU if name == "cpu" else device(name.upper())
    workload = replace(SMALL, encoder=transformer("minilm-l6", tokens=32)).of_system(system)
    found = estimate(workload, on)
    assert found.fits
    assert min(*found.flop.values(), *found.traffic.values(), *found.seconds.values()) > 0
    assert all(size >= 0 for phase in found.phases for size in phase.parts.values())
    assert found.total == found.peak + found.framework > sum(found.held.values())
    record = as_json(found)
    assert record["total_bytes"] == round(found.total)
    text = as_text({system: found})
    assert ("not measured" in text) == (name != "cpu")
    assert "floors, not predictions" in text


def test_most_labels_is_the_last_number_that_fits() -> None:
    workload = replace(SMALL, group_size=32)
    most = most_labels(workload, CPU)
    assert estimate(replace(workload, num_labels=most), CPU).fits
    assert not estimate(replace(workload, num_labels=most + 1), CPU).fits
    assert most_labels(workload, replace(CPU, memory=1e8)) == 0
    assert most_labels(workload, DEVICES["h200"]) > most


def test_a_bottleneck_costs_what_the_layer_it_replaces_costs() -> None:
    workload = Workload(num_labels=100_000, in_features=768, fan_in=128, head_ratio=0.05)
    matched = workload.of_system("bottleneck")
    found, wanted = (sum(estimate(w, CPU).flop.values()) for w in (matched, workload))
    assert 0.94 < found / wanted <= 1


def test_memory_grows_with_everything_that_takes_it() -> None:
    base = replace(SMALL, num_labels=100_000, regrow="none", encoder=transformer("bert-base", tokens=64))
    peak = estimate(base, DEVICES["a100"]).peak
    changes = (
        {"num_labels": 200_000},
        {"fan_in": 32},
        {"dtype": "float32"},
        {"rule": "adamw"},
        {"fused": False},
        {"batch_size": 64},
        {"encoder": transformer("bert-base", tokens=128)},
    )
    for change in changes:
        assert estimate(replace(base, **change), DEVICES["a100"]).peak > peak, change
    again = replace(base, batch_size=64, encoder=transformer("bert-base", tokens=64, checkpointing=True))
    assert estimate(again, DEVICES["a100"]).peak < estimate(replace(base, batch_size=64), DEVICES["a100"]).peak


class Attending(nn.Module):
    """A layer of BERT as the formula counts it."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        parts = (
            layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(*parts, dropout_p=0.1)
        read = attended.transpose(1, 2).reshape(batch, tokens, width)
        x = self.norms[0](x + nn.functional.dropout(self.out(read), 0.1))
        return self.norms[1](x + nn.functional.dropout(self.down(nn.functional.gelu(self.up(x))), 0.1))


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
def test_activations_of_a_transformer_are_what_autograd_keeps(dtype: torch.dtype, autocast: bool) -> None:
    width, inner, batch, tokens, depth = 64, 256, 3, 40, 4
    layers = nn.Sequential(*(Attending(width, inner, 4) for _ in range(depth))).to(dtype)
    own = {parameter.untyped_storage().data_ptr() for parameter in layers.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(x)
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layers(torch.randn((batch, tokens, width), dtype=dtype))
    model = Transformer(
        kind="test",
        layers=depth,
        width=width,
        inner=inner,
        vocabulary=1,
        heads=4,
        tokens=tokens,
        element=dtype.itemsize,
        autocast=autocast,
    )
    embeddings = batch * tokens * (2 * dtype.itemsize * width + 24)
    expected = model.activations(batch, "cpu") - embeddings
    assert sum(kept.values()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "name", ["sentence-transformers/msmarco-distilbert-base-v4", "distilroberta-base", "roberta-large"]
)
def test_transformers_of_settings_are_found_by_name(name: str) -> None:
    encoder = {"kind": "transformer", "name": name, "features": 0, "checkpointing": True}
    optim = {"encoder": {"lr": 1e-5}}
    config = Config.from_dict({"data": {"path": "x", "max_tokens": 77}, "encoder": encoder, "optim": optim})
    workload = workload_of(config, num_labels=10, num_inputs=1)
    found = workload.encoder
    assert isinstance(found, Transformer)
    assert found.kind in name
    assert (found.tokens, found.checkpointing) == (77, True)
    assert workload.in_features == found.width
    unknown = Config.from_dict({"data": {"path": "x"}, "encoder": {**encoder, "name": "x/y"}, "optim": optim})
    with pytest.raises(ValueError, match=r"encoder.name \(x/y\) must be a folder, or of a known size"):
        workload_of(unknown, num_labels=1, num_inputs=1)


def test_a_transformer_in_a_folder_has_the_sizes_written_there(tmp_path: Path) -> None:
    sizes = {"dim": 48, "n_layers": 3, "hidden_dim": 96, "vocab_size": 1000, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    encoder = {"kind": "transformer", "name": str(tmp_path), "features": 0, "autocast": True}
    values = {"data": {"path": "x"}, "encoder": encoder, "output": {"fan_in": 8}, "optim": {"encoder": {"lr": 1e-5}}}
    workload = workload_of(Config.from_dict(values), num_labels=10, num_inputs=1)
    found = workload.encoder
    assert isinstance(found, Transformer)
    assert (found.width, found.layers, found.inner, found.vocabulary, found.positions) == (48, 3, 96, 1000, 64)
    assert (found.autocast, found.element, found.computed) == (True, 4, 2)
    assert workload.in_features == 48
    del sizes["n_layers"]
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(ValueError, match=r"config.json: must have num_hidden_layers, hidden_size"):
        workload_of(Config.from_dict(values), num_labels=10, num_inputs=1)


def test_known_transformers_have_their_size() -> None:
    found = {name: transformer(name).parameters / 1e6 for name in ("bert-base", "distilroberta", "minilm-l6")}
    # Of the hub's models without their poolers: 109.48 - 0.59, 82.12 - 0.59 and 22.71 - 0.15 million.
    assert found == pytest.approx({"bert-base": 108.89, "distilroberta": 81.53, "minilm-l6": 22.57}, rel=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_labels": 0}, "num_labels (0) must be at least 1"),
        ({"num_labels": 2**31}, "must be below 2^31"),
        ({"fan_in": 65}, "fan_in (65) must not exceed in_features (64)"),
        ({"head_ratio": 1.5}, "head_ratio (1.5) must be in [0, 1]"),
        ({"dtype": "float16"}, "dtype (float16) must be float32 or bfloat16"),
        ({"rule": "adam"}, "optimizer (adam) must be one of sgd, momentum, adamw"),
    ],
)
def test_sizes_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        replace(SMALL, **change)
    assert message in str(refused.value)


def test_unknown_names_are_refused() -> None:
    for call, message in (
        (lambda: SMALL.of_system("tree"), "system (tree) must be one of dense"),
        (lambda: device("tpu"), "device (tpu) must be one of cpu, h200"),
        (lambda: transformer("gpt"), "encoder (gpt) must be one of none, bert-base"),
    ):
        with pytest.raises(ValueError) as refused:
            call()
        assert message in str(refused.value)


def test_this_machine_has_roofs() -> None:
    found = device("cpu", 1e9)
    assert found.kind == "cpu"
    assert found.memory == 1e9
    assert min(found.bandwidth, found.float32) > 0


def test_the_tables_of_the_page_are_what_the_command_prints() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for table in (table_1(), hundred_million()):
        assert "\n".join(table) in page, "run haste estimate --published and put its tables into docs/estimate.md"


def test_sizes_of_the_gpu_kernels_are_theirs() -> None:
    pytest.importorskip("triton")
    from haste.ops.triton import plans

    assert plans.Plan().chunk_bytes == _layers._GPU_SLOPES
    for layout, rows in _layers._GPU_TILE_ROWS.items():
        assert plans.tile_rows(1, layout) == rows


def test_rows_of_a_bag_are_counted_once() -> None:
    bag = Bag(num_inputs=100, widths=(8,), terms=1000.0)
    assert bag.gradients(64) == pytest.approx(2 * 4 * 100 * 8)
    assert Given(widths=(64,)).parameters == 0
