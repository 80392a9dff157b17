"""A run from its settings to its folder: steps, evaluations, checkpoints, the final model."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from haste.config import Config
from haste.data.dataset import Dataset
from haste.data.tokens import Tokens
from haste.nn import Transformer
from haste.train.checkpoint import link_checkpoint, load_checkpoint, save_checkpoint
from haste.train.device import compute_settings
from haste.train.evaluate import K, predict_topk, score_deciles, score_ranking
from haste.train.files import write_json
from haste.train.finite import require_finite_numbers
from haste.train.given_data import load_given
from haste.train.loop import Loop
from haste.train.model_folder import TrainedModel, save_model
from haste.train.progress import Progress, duration, print_line
from haste.train.record import environment, model_size, run_peaks
from haste.train.run_folder import RunFolder
from haste.train.signals import Interrupted, StopRequest

_WINDOW = 50  # steps between two rows of the training loss
_BEST = "nDCG@5"


def train(
    config: Config, *, dataset: Dataset | None = None, resume: bool = False, log: Callable[[str], None] | None = None
) -> Path:
    """Train a model and leave a run folder.

    Args:
        config: every setting of the run.
        dataset: to train on; None = what config.data describes.
        resume: continue the run in `run.dir` from its last checkpoint; start it where there is none.
        log: takes lines of text; None = standard error, with a live bar where that is a terminal.

    Returns:
        The run folder.

    Raises:
        ValueError: settings or data that cannot be used, a folder in the way, or a loss that diverged.
        Interrupted: SIGINT, SIGTERM or SIGHUP; a checkpoint was written, the message says how to resume.
    """
    say = log or print_line
    folder = RunFolder(config, resume=resume)
    if folder.finished:
        if dataset is not None:
            _check_data(folder, load_checkpoint(folder.last)[1], _fingerprint(dataset))
        say(f"{folder.path} is finished already; nothing to do")
        return folder.path
    with compute_settings(config.run) as device:
        started = time.perf_counter()
        dataset = dataset or load_given(config, log=say)
        if config.run.patience and dataset.dev is None:
            raise ValueError(
                f"run.patience ({config.run.patience}) must be 0 without a dev split; set data.dev_fraction"
            )
        loop = Loop(config, dataset, device)
        folder.create(config)
        with folder.locked(), StopRequest() as stop:
            run = _Run(config, dataset, loop, folder, stop, log)
            run.seconds["data"] = time.perf_counter() - started
            if folder.last.is_symlink():
                run.restore()
            else:
                run.initialize(say)
                folder.history.keep(lambda row: False)
            run.go()
    return folder.path


@dataclass
class _Place:
    """Where a run is: completed steps, and what evaluations have said so far."""

    step: int = 0
    evaluated_step: int = 0
    best: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0


class _Run:
    """The loop with everything around it."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        loop: Loop,
        folder: RunFolder,
        stop: StopRequest,
        log: Callable[[str], None] | None,
    ) -> None:
        self.config, self.dataset, self.loop, self.folder, self.stop = config, dataset, loop, folder, stop
        self.log, self.place, self.saved_step = log, _Place(), -1
        self.fingerprint = _fingerprint(dataset)
        self.seconds = {"data": 0.0, "train": 0.0, "evaluate": 0.0, "checkpoint": 0.0}
        self.evaluation_steps = max(1, round(config.run.evaluate_every * loop.steps_per_epoch))
        self.step_seconds: dict[str, float] = {}
        self.step_peaks: dict[str, int] = {}
        self.timed_steps = self.tokens = 0
        self.pads = loop.batches.pads()
        self.grouping: dict[str, float] = {}
        self.environment = environment(loop.device)
        self.record: dict[str, Any] = {}

    def initialize(self, say: Callable[[str], None]) -> None:
        """Start from nothing; a transformer first encodes the documents by which labels are grouped."""
        if self.config.encoder.kind == "transformer" and self.config.output.grouping == "semantic":
            texts = "texts of labels" if self.config.label_texts.group else f"{len(self.dataset.train):,} documents"
            say(f"encoding {texts} to group labels by them")
        try:
            self.grouping = self.loop.initialize(self.dataset, tick=self.stop.check)
        except Interrupted:
            raise self._interrupted() from None

    def restore(self) -> None:
        """Go back to the last checkpoint.

        Raises:
            ValueError: a checkpoint is damaged, or the data is not what the run was started with.
        """
        tensors, meta = load_checkpoint(self.folder.last)
        _check_data(self.folder, meta, self.fingerprint, self.config.data.path)
        self.place = place = _Place(**meta["place"])
        self.saved_step = place.step
        if place.best_step == place.step:  # a crash may have come between the two links
            link_checkpoint(self.folder.last.resolve(), "best")
        elif place.best_step is not None:
            load_checkpoint(self.folder.best, only="model.")  # better refused now than after days
        self.loop.load(tensors, meta["loop"])
        evaluated = place.evaluated_step == place.step
        self.folder.history.keep(
            lambda row: row["step"] < place.step or (row["step"] == place.step and (evaluated or row["kind"] != "dev"))
        )
        if self.folder.record.exists():
            self.record = json.loads(self.folder.record.read_text(encoding="utf-8"))
            for phase, seconds in self.record["seconds"].items():
                self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
            self.step_seconds = dict(self.record.get("step_seconds", {}))
            self.step_peaks = dict(self.record.get("step_peak_bytes", {}))
            self.timed_steps = self.record.get("timed_steps", 0)
            self.tokens = self.record.get("tokens", {}).get("trained", 0)
            self.grouping = self.record.get("grouping", {})

    def go(self) -> None:
        """Train to the end, or to a request to stop."""
        self._write_record("running")
        total = self.loop.total_steps
        with Progress(total, self.config.optim.epochs, self.place.step, self.log) as progress:
            if self.pads:
                share, without = (100 * share for share in self.pads.values())
                progress.log(f"{share:.1f} % of the tokens of batches are pads, {without:.1f} % without data.buckets")
            if self.place.step:
                progress.log(f"resuming {self.folder.path} at step {self.place.step} of {total}")
            try:
                self._train(progress)
            except Interrupted:
                self._save(["last"])
                raise self._interrupted() from None
            try:
                self._finish(progress)
            except Interrupted:
                raise self._interrupted() from None

    def _train(self, progress: Progress) -> None:
        run, place, loop = self.config.run, self.place, self.loop
        while True:
            due = place.step % self.evaluation_steps == 0 or place.step == loop.total_steps
            if due and place.evaluated_step != place.step:
                self._evaluate(progress)
            elif run.checkpoint_every and place.step and place.step % run.checkpoint_every == 0:
                self._save(["last"])
            if run.patience and place.stale_evaluations >= run.patience and place.step < loop.total_steps:
                progress.log(f"stopping early: dev {_BEST} is best since step {place.best_step}")
                return
            if place.step == loop.total_steps:
                return
            self.stop.check()
            diagnose = run.diagnostics_every and (place.step + 1) % run.diagnostics_every == 0
            if diagnose:
                loop.diagnostics.watch()
            started = time.perf_counter()
            tokens = loop.tokens
            statistics = loop.step(place.step)
            place.step += 1
            if statistics:
                self._note("rewire", statistics)
            if place.step == loop.regroup_step:
                self._note("regroup", loop.regroup())
            if place.step % _WINDOW == 0 or place.step == loop.total_steps:
                rates = {f"lr_{name}": float(schedule.get_last_lr()[0]) for name, schedule in loop.schedules.items()}
                self._note("train", {"loss": loop.window_loss(), **rates, **self._step_parts()})
                loop.empty_window()
            seconds = time.perf_counter() - started
            self.seconds["train"] += seconds
            size = min(self.config.optim.batch_size, loop.epoch_size)
            tokens = loop.tokens - tokens
            self.tokens += tokens
            progress.step(place.step, loss=loop.window_loss, documents=size, tokens=tokens, seconds=seconds)
            if diagnose:
                with self._timed("evaluate"):
                    measured = loop.diagnostics.collect()
                self._note("diagnostics", measured)
                require_finite_numbers(measured, self.config.optim)

    def _evaluate(self, progress: Progress) -> None:
        """Evaluate on dev where there is one, note what is best, and keep checkpoints."""
        self.loop.check_finite()
        place, names = self.place, ["last"]
        if self.dataset.dev is not None:
            metrics = self._metrics("dev")[0]
            self._note("dev", metrics)
            better = place.best is None or metrics[_BEST] > place.best
            place.stale_evaluations = 0 if better else place.stale_evaluations + 1
            if better:
                place.best, place.best_step = metrics[_BEST], place.step
                names.append("best")
            shown = "  ".join(f"{name} {metrics[name]:.2f}" for name in ("P@1", "P@3", "P@5", _BEST))
            progress.log(f"step {place.step}: dev {shown}{'  (best)' if better else ''}")
        place.evaluated_step = place.step
        self.saved_step = -1
        self._save(names)

    def _finish(self, progress: Progress) -> None:
        """Evaluate the best model, write it, and close the records; metrics.json comes last."""
        step = self.place.step
        if self.place.best_step is not None:
            tensors, meta = load_checkpoint(self.folder.best, only="model.")
            self.loop.load_model(tensors)
            step = meta["step"]
        if isinstance(self.loop.model.encoder, Transformer):
            self.loop.model.encoder.merge()
        names = [name for name in ("dev", "test") if getattr(self.dataset, name) is not None]
        metrics, by_decile = {}, {}
        for name in names:
            metrics[name], ids = self._metrics(name)
            by_decile[name] = score_deciles(ids, getattr(self.dataset, name).truth, self.dataset.labels)
        model = TrainedModel(
            model=self.loop.model,
            config=self.config,
            labels=self.dataset.labels,
            vectorizer=self.dataset.vectorizer,
            num_points=len(self.dataset.train),
            inputs=self.dataset.kind,
        )
        save_model(self.folder.model, model, metrics)
        self._write_record("finished", model_step=step)
        a, b = self._propensity()
        filtered = {name: f.nnz for name in metrics if (f := getattr(self.dataset, name).filter) is not None}
        more = {"step": step, "propensity": {"a": a, "b": b}, **({"filter": filtered} if filtered else {})}
        if by_decile:
            more["by_decile"] = by_decile
        write_json(self.folder.metrics, {**metrics, **more})
        for name, values in metrics.items():
            shown = "  ".join(f"{key} {values[key]:.2f}" for key in ("P@1", "P@3", "P@5", _BEST, "PSP@5"))
            pairs = f", {filtered[name]:,} pairs filtered" if name in filtered else ""
            progress.log(f"{name}: {shown}  (a {a}, b {b}{pairs})")
        chosen = "the best on dev" if self.place.best_step is not None else "the last"
        memory = self.record["peak_memory_bytes"] / 2**20
        progress.log(
            f"{self.folder.model}: the model of step {step}, {chosen}; "
            f"{duration(sum(self.seconds.values()))}, {memory:,.0f} MiB of memory at most"
        )

    def _metrics(self, name: str) -> tuple[dict[str, float], np.ndarray]:
        """Metrics on a split, and the ranked labels of its documents."""
        split, labels = getattr(self.dataset, name), self.dataset.labels
        with self._timed("evaluate"):
            ids = predict_topk(self.loop.model, split, K, tick=self.stop.check)[1]
            points = len(self.dataset.train)
            return score_ranking(ids, split.truth, labels, num_points=points, propensity=self._propensity()), ids

    def _propensity(self) -> tuple[float, float]:
        constants = self.config.data.propensity
        return constants.a, constants.b

    def _step_parts(self) -> dict[str, dict[str, float]]:
        """Milliseconds of the parts of a step, mean of those since the last call, and MiB at most in each."""
        taken, peaks, steps = self.loop.times.take()
        for part, seconds in taken.items():
            self.step_seconds[part] = self.step_seconds.get(part, 0.0) + seconds
        for part, size in peaks.items():
            self.step_peaks[part] = max(size, self.step_peaks.get(part, 0))
        self.timed_steps += steps
        milliseconds = {part: round(1000 * seconds / steps, 3) for part, seconds in taken.items()}
        return {"step_ms": milliseconds, "step_mib": {part: round(size / 2**20, 1) for part, size in peaks.items()}}

    def _tokens(self) -> dict[str, float]:
        """Tokens trained on, pads apart, and a second of training; and the shares of pads."""
        speed = self.tokens / self.seconds["train"] if self.tokens else 0.0
        shares = {name: round(share, 4) for name, share in self.pads.items()}
        return {"trained": self.tokens, "per_second": round(speed, 1), **shares}

    def _save(self, names: list[str]) -> None:
        """Write a checkpoint of this step, unless `last` is one already."""
        if self.saved_step == self.place.step:
            return
        self.loop.window_loss()
        with self._timed("checkpoint"):
            save_checkpoint(
                self.folder.checkpoints,
                names,
                step=self.place.step,
                tensors=self.loop.tensors(),
                meta={"place": asdict(self.place), "loop": self.loop.meta(), "data": self.fingerprint},
                grouped=self.loop.grouped(),
            )
        self.saved_step = self.place.step
        self._write_record("running")

    def _note(self, kind: str, values: dict[str, Any]) -> None:
        epoch = self.place.step / self.loop.steps_per_epoch
        row = {"kind": kind, "step": self.place.step, "epoch": round(epoch, 4), **values}
        self.folder.history.append({**row, "seconds": round(sum(self.seconds.values()), 3)})

    def _write_record(self, status: str, **more: Any) -> None:
        data = {name: len(split) for name in ("train", "dev", "test") if (split := getattr(self.dataset, name))}
        sizes = {
            "inputs": self.dataset.num_inputs,
            "labels": self.dataset.labels.num_labels,
            "labels_outside_train": len(self.dataset.labels.names) - self.dataset.labels.num_labels,
        }
        if self.dataset.points is not None:
            sizes["label_texts"] = len(self.dataset.points) - len(self.dataset.train)
        self.record = {
            "status": status,
            "step": self.place.step,
            "total_steps": self.loop.total_steps,
            **more,
            "environment": self.environment,
            "data": {**data, **sizes},
            "model": model_size(self.loop.model),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "step_seconds": {name: round(value, 6) for name, value in self.step_seconds.items()},
            "step_peak_bytes": self.step_peaks,
            "timed_steps": self.timed_steps,
            **({"tokens": self._tokens()} if self.pads else {}),
            **({"grouping": {k: round(v, 4) for k, v in self.grouping.items()}} if self.grouping else {}),
            "documents": self.fingerprint,
            **{name: max(size, self.record.get(name, 0)) for name, size in run_peaks(self.loop.times).items()},
        }
        write_json(self.folder.record, self.record)

    def _interrupted(self) -> Interrupted:
        self._write_record("interrupted")
        return Interrupted(
            f"stopped after step {self.place.step} of {self.loop.total_steps}; "
            f"resume with: haste train {self.folder.config} --resume"
        )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - started


def _check_data(folder: RunFolder, meta: dict[str, Any], fingerprint: str, path: str = "given in memory") -> None:
    if meta["data"] != fingerprint:
        raise ValueError(
            f"data.path ({path}) must hold the documents that the run in {folder.path} was started with; restore "
            "them, or choose another run.dir"
        )


def _fingerprint(dataset: Dataset) -> str:
    """Digest of the documents and labels that decide a run, as the model sees them; known where they were prepared."""
    if dataset.digest:
        return dataset.digest
    digest = hashlib.sha256("\0".join(dataset.labels.names).encode())
    for split in (dataset.train, dataset.dev):
        for matrix in (split.features, split.truth) if split is not None else ():
            for array in _arrays(matrix):
                digest.update(f"{array.dtype} {array.size}".encode())
                digest.update(array)
    return digest.hexdigest()


def _arrays(matrix: Any) -> tuple[Any, ...]:
    if isinstance(matrix, np.ndarray):
        return (matrix,)
    if isinstance(matrix, Tokens):
        return matrix.offsets, matrix.ids
    return matrix.indptr, matrix.indices, matrix.data
