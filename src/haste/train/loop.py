"""One training step, a function of the settings, the data and the step's number alone.

Batches come from a permutation of (seed, epoch) and the random generator is set from (seed, step) before each
step, so a run that is stopped anywhere and resumed computes the same bits as one that is not.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from haste import optim, topology
from haste.config import Config
from haste.data.dataset import Dataset, Documents, Positives, Split
from haste.nn import Auxiliary, Transformer, build_model, initialize_output
from haste.nn.initial import start_from_documents
from haste.nn.model import order_of_labels
from haste.nn.regroup import regroup
from haste.rewire import Schedule
from haste.train.alike import by_texts, texts_of
from haste.train.batches import Batches, batch_of, by_length
from haste.train.diagnostics import Diagnostics
from haste.train.encoded import Encoded
from haste.train.finite import require_finite, require_finite_weights
from haste.train.timing import StepTimes

_STEP = 2  # stream of random numbers; others are those of the batches
_SAMPLE, _ENCODED_SAMPLE = 10_000, 2_000  # documents that a projection is fitted on; an encoder reads them twice
_TOGETHER = 256  # documents encoded at a time where nothing is trained


class Loop:
    """Model, optimizers and schedules, one training step, and all that a checkpoint must hold of them.

    Args:
        config: settings of the run.
        dataset: gives the training documents and the sizes.
        device: where to compute.
    """

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.config, self.device, self.points = config, device, _points(config, dataset)
        seed = config.run.seed
        self.model = build_model(
            config,
            num_inputs=dataset.num_inputs,
            num_labels=dataset.labels.num_labels,
            dense_inputs=dataset.kind == "dense",
        ).to(device)
        self.auxiliary: Auxiliary | None = None
        if config.auxiliary.clusters:
            self.auxiliary = Auxiliary(
                self.model.output.in_features,
                dataset.labels.num_labels,
                min(config.auxiliary.clusters, dataset.labels.num_labels),
                dropout=config.encoder.dropout,
                seed=seed,
            ).to(device)
        self.num_documents = len(dataset.train)
        names = dataset.labels.names[: dataset.labels.num_labels]
        self._texts = texts_of(self.points.ids, names) if config.label_texts.group else None
        self.epoch_size = self.num_documents
        if config.label_texts.train:
            self.epoch_size += math.ceil(config.label_texts.share * (len(self.points) - self.num_documents))
        self.batches = Batches(
            self.points,
            config.optim.batch_size,
            seed=seed,
            device=device,
            buckets=config.data.buckets,
            always=self.num_documents,
            epoch_size=self.epoch_size,
        )
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = config.optim.epochs * self.steps_per_epoch
        settings, output = config.optim, config.optim.output
        encoder = settings.encoder
        parameters = self.model.encoder_parameters(), self.model.output.layer_parameters()
        self.optimizers = {
            "output": _optimizer(output.name, parameters[1], output.lr, output.weight_decay, output.momentum, seed=seed)
        }
        if parameters[0]:  # given features may go straight to the output layer
            self.optimizers["encoder"] = _optimizer(
                encoder.name,
                parameters[0],
                encoder.lr,
                encoder.weight_decay,
                state_dtype=torch.bfloat16 if encoder.state_dtype == "bfloat16" else None,
                seed=seed,
            )
        if self.auxiliary is not None:
            lr = output.lr if config.auxiliary.lr is None else config.auxiliary.lr
            self.optimizers["auxiliary"] = _optimizer(
                output.name, self.auxiliary.parameters(), lr, output.weight_decay, output.momentum, seed=seed
            )
        self.schedules = {
            name: optim.cosine_schedule(optimizer, settings.warmup_steps, self.total_steps)
            for name, optimizer in self.optimizers.items()
        }
        self.rewire_schedule = Schedule(
            interval=config.rewire.interval,
            fraction=config.rewire.fraction,
            end=config.rewire.end,
            total_steps=self.total_steps,
            schedule=config.rewire.schedule,
            threshold=config.rewire.threshold,
        )
        tail = self.model.output.tail
        self.sparse = tail is not None and tail.indices is not None
        anew = config.output.regroup > 0 and self.sparse and tail is not None and tail.group_size > 1
        self.regroup_step = max(1, round(config.output.regroup * self.total_steps)) if anew else 0
        self._ranking = _all_counts(dataset) if config.output.frequencies == "all" else dataset.labels.counts
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.documents, self.tokens, self._last_loss = 0, 0, 0.0
        self.times = StepTimes(device)
        self.diagnostics = Diagnostics(self.model.output, dataset.labels.counts, seed)

    def initialize(self, dataset: Dataset, *, tick: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Give rows their labels, biases their start and, where rare labels learn faster, weights their rates.

        Args:
            dataset: that of the run.
            tick: called now and then; may raise to stop.

        Returns:
            How good the groups are, as `initialize_output`.
        """
        features: Any = self.points.features
        if isinstance(self.model.encoder, Transformer):
            features = Encoded(self.model.encoder, self.points, self.device, tick=tick)
        quality = initialize_output(
            self.model,
            self.config,
            features=features,
            sample=_ENCODED_SAMPLE if isinstance(features, Encoded) else _SAMPLE,
            truth=self.points.truth,
            alike=self._alike(features),
            counts=dataset.labels.counts,
            num_points=self.num_documents,
            ranking_counts=self._ranking,
            auxiliary=self.auxiliary,
        )
        settings, output = self.config.optim.output, self.model.output
        if settings.rarity or settings.sparsity:
            rates = optim.rarity_rates(dataset.labels.counts, settings.rarity)
            if output.tail is not None:
                tail = output.label_order[output.num_head_labels :].cpu()
                rates[tail] *= (output.tail.in_features / output.tail.fan_in) ** settings.sparsity
            output.set_rates(self.optimizers["output"], rates)
        if self.config.label_texts.init:
            self.model.eval()
            start_from_documents(self.model.output, self._encoded(tick))
        return quality

    def _alike(self, features: Any) -> tuple[Any, csr_matrix]:
        """Features and positives by which labels are grouped."""
        truth = self.points.truth
        return (features, truth) if self._texts is None else by_texts(features, truth, self._texts)

    def _encoded(self, tick: Callable[[], None]) -> Iterator[tuple[Tensor, Positives]]:
        """Features and positives of all that is trained on; of tokens, by their length."""
        order = by_length(self.points, np.arange(len(self.points)))
        for start in range(0, len(order), _TOGETHER):
            tick()
            rows = order[start : start + _TOGETHER]
            documents, positives = batch_of(self.points, rows, self.device)
            with torch.no_grad():
                yield self.model.encoder(documents), positives

    def rows(self, step: int) -> np.ndarray:
        """Documents, or texts of labels, of the batch that follows `step` completed steps."""
        return self.batches.rows(step)

    def step(self, step: int) -> dict[str, float]:
        """Train on the batch that follows `step` completed steps; returns rewiring statistics, if due."""
        torch.manual_seed(_seed(self.config.run.seed, _STEP, step))
        if self.auxiliary is not None and step >= self.config.auxiliary.end * self.total_steps:
            self._drop_auxiliary()
        part = self.times.part
        with part("data"):
            batch = self.batches.take(step)
            documents, positives = batch.documents, batch.positives
        model, update = self.model, self.optimizers["output"]
        model.train()
        with part("encoder_forward"):
            features = model.encoder(documents)
        with part("output"):
            if self.config.optim.output.fused:
                loss = model.output.step(features, positives, update)
            else:
                loss = model.output.loss(features, positives)
            total, share = loss, self._auxiliary_weight(step)
            if self.auxiliary is not None and share > 0:
                watched = model.output.watched(features, "auxiliary")
                total = loss + share * self.auxiliary.loss(watched, positives)
        if total.requires_grad:
            with part("encoder_backward"):  # without a fused pass the output layer's too
                total.backward()
        with part("optimizer"):
            for name, optimizer in self.optimizers.items():
                optimizer.step()  # after a fused pass the output layer has no gradients and this does nothing
                optimizer.zero_grad(set_to_none=True)
                self.schedules[name].step()
        self.loss_sum += loss.detach()
        self.documents += batch.size
        self.tokens += batch.tokens
        self.times.end_step()
        if not (self.sparse and self.rewire_schedule.due(step + 1)):
            return {}
        with part("rewire"):
            return self._rewire(documents, positives, step + 1)

    def regroup(self) -> dict[str, float]:
        """Put the tail's labels into groups anew, by what the encoder makes of their documents now.

        Returns: kept, the part of the absolute weight of the tail that moved along; cosine_before and cosine, the mean
            similarity of a label to the centre of its group in the old and the new groups.
        """
        output, seed, size = self.model.output, self.config.run.seed, self.config.output.group_size
        alike = self._alike(Encoded(self.model.encoder, self.points, self.device))
        embeddings = topology.label_embeddings(*alike, num_labels=len(self._ranking), sample=_ENCODED_SAMPLE, seed=seed)
        order = order_of_labels(output, self.config, self._ranking, "semantic", embeddings)
        head = output.num_head_labels
        cosines = [
            topology.mean_cosine(embeddings[rows[head:].cpu().numpy()], size) for rows in (output.label_order, order)
        ]
        statistics = regroup(output, order, self.optimizers["output"])
        return {**statistics, "cosine_before": cosines[0], "cosine": cosines[1]}

    def _auxiliary_weight(self, step: int) -> float:
        """Weight of the auxiliary loss after `step` steps: a half cosine from its start to 0 at its end."""
        settings = self.config.auxiliary
        end = settings.end * self.total_steps
        return 0.5 * settings.weight * (1 + math.cos(math.pi * step / end)) if step < end else 0.0

    def _drop_auxiliary(self) -> None:
        """Free the auxiliary classifier and all that trains it."""
        self.auxiliary = None
        del self.optimizers["auxiliary"], self.schedules["auxiliary"]

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        parameters = dict(self.model.named_parameters())
        if self.auxiliary is not None:
            parameters |= {f"auxiliary.{name}": x for name, x in self.auxiliary.named_parameters()}
        return parameters

    def _rewire(self, documents: Documents, positives: Positives, step: int) -> dict[str, float]:
        settings, batch = self.config.rewire, None
        if settings.regrow == "gradient":
            self.model.eval()
            with torch.no_grad():
                batch = (self.model.encoder(documents), positives)
        return self.model.output.rewire(
            self.rewire_schedule.fraction_at(step),
            optimizer=self.optimizers["output"],
            regrow=settings.regrow,
            batch=batch,
            scope=settings.scope,
            threshold=self.rewire_schedule.threshold_at(step),
            init=settings.init,
            state=settings.state,
            seed=self.config.run.seed,
            step=step,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name."""
        found = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.auxiliary is not None:
            found |= {f"auxiliary.{name}": tensor for name, tensor in self.auxiliary.state_dict().items()}
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._named_parameters().items()}
        for which, optimizer in self.optimizers.items():
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    found[f"{which}_optimizer.{names[parameter]}.{key}"] = value
        found["loss_sum"] = self.loss_sum
        return found

    def grouped(self) -> list[str]:
        """Names in `tensors` whose first dimension counts groups."""
        layers = (".output.head.", ".output.tail.")
        return [name for name, x in self.tensors().items() if x.dim() and any(part in name for part in layers)]

    def window_loss(self) -> float:
        """Mean loss of a document in this window of steps, or in the last one where this one is empty.

        Raises:
            ValueError: it is not finite.
        """
        if not self.documents:
            return self._last_loss
        loss = self._last_loss = self.loss_sum.item() / self.documents
        require_finite("the training loss", loss, self.config.optim)
        return loss

    def check_finite(self) -> None:
        """Raise ValueError where the loss of this window or a weight of the model is not finite."""
        self.window_loss()
        require_finite_weights(self.model.named_parameters(), self.config.optim)

    def empty_window(self) -> None:
        """Start a new window of the training loss."""
        self.loss_sum.zero_()
        self.documents = 0

    def meta(self) -> dict[str, Any]:
        """What a resumed run needs besides `tensors`."""
        schedules = {name: schedule.state_dict() for name, schedule in self.schedules.items()}
        return {"schedules": schedules, "documents": self.documents}

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Continue from `tensors` and `meta`."""
        self.load_model(tensors)
        self.loss_sum.copy_(tensors["loss_sum"])
        self.documents = meta["documents"]
        if self.auxiliary is not None:
            if "auxiliary" in meta["schedules"]:
                self.auxiliary.load_state_dict(_under("auxiliary.", tensors))
            else:
                self._drop_auxiliary()
        parameters = self._named_parameters()
        for which, optimizer in self.optimizers.items():
            prefix = f"{which}_optimizer."
            for name in [name for name in tensors if name.startswith(prefix)]:
                parameter, _, key = name.removeprefix(prefix).rpartition(".")
                optimizer.state[parameters[parameter]][key] = tensors[name].to(self.device)
            self.schedules[which].load_state_dict(meta["schedules"][which])
            for group, lr in zip(optimizer.param_groups, self.schedules[which].get_last_lr(), strict=True):
                group["lr"] = lr

    def load_model(self, tensors: dict[str, Tensor]) -> None:
        """Take the model's tensors only."""
        self.model.load_state_dict(_under("model.", tensors))


def _points(config: Config, dataset: Dataset) -> Split:
    """What is trained on: the documents of train and, where they are read, the texts of labels behind them."""
    if not config.label_texts.read:
        return dataset.train
    if dataset.points is None:
        raise ValueError("label_texts.train, init and group must be false: the labels of this data have no texts")
    return dataset.points


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with prefix, by the rest of the name."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _all_counts(dataset: Dataset) -> np.ndarray:
    """Documents of every label that training has, those of dev and test too."""
    counts = np.array(dataset.labels.counts)
    for split in (dataset.dev, dataset.test):
        if split is not None:
            labels = split.truth.indices
            counts += np.bincount(labels[labels < len(counts)], minlength=len(counts))
    return counts


def _optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    momentum: float = 0.0,
    *,
    state_dtype: torch.dtype | None = None,
    seed: int,
) -> optim.SGD | optim.AdamW:
    if name == "kahan_adamw":
        return optim.KahanAdamW(parameters, lr=lr, weight_decay=weight_decay, state_dtype=state_dtype, seed=seed)
    if name == "adamw":
        return optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, seed=seed)
    return optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, seed=seed)


def _seed(*words: int) -> int:
    """One seed out of several words."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
