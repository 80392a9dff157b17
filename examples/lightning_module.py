"""Train with Lightning's automatic optimization: python examples/lightning_module.py my.csv

With --step the output layer is trained in one fused pass by haste.optim.SGD; Lightning takes a single optimizer, so
both go to it as one.
"""

import torch
from texts import TextModel, parser, prepare
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from haste.integrations import Collator
from haste.integrations.lightning import RewireCallback
from haste.nn import HeadTail
from haste.optim import SGD, ChainedOptimizer, cosine_schedule

try:
    import lightning.pytorch as pl
except ImportError:
    import pytorch_lightning as pl


class LabelModule(pl.LightningModule):
    """A text model in Lightning's terms; the callback rewires its `output`."""

    def __init__(self, model: TextModel, lr: float, fused: bool) -> None:
        super().__init__()
        self.model, self.lr, self.update = model, lr, None
        if fused:
            self.update = SGD(model.output.layer_parameters(), lr=0.02)

    @property
    def output(self) -> HeadTail:
        return self.model.output

    def configure_optimizers(self) -> dict:
        if self.update is None:
            optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr)
        else:
            optimizer = ChainedOptimizer(torch.optim.AdamW(self.model.encoder.parameters(), lr=self.lr), self.update)
        schedule = cosine_schedule(optimizer, 10, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict, number: int) -> dict:
        positives = batch.pop("positives")
        features = self.model(**batch)
        if self.update is None:
            loss = self.output.loss(features, positives)
        else:  # the layer is trained now, once every micro-batch; what is left is for the encoder
            loss = self.output.step(features, positives, self.update)
        return {"loss": loss, "features": features, "positives": positives}  # the last two are for rewiring

    def validation_step(self, batch: dict, number: int) -> None:
        (offsets, labels), documents = batch.pop("positives"), len(batch["input_ids"])
        best = self.output.topk(self.model(**batch), k=1)[1]
        hits = best[:, 0].repeat_interleave(offsets.diff()) == labels
        self.log("P@1", 100 * hits.sum() / documents, prog_bar=True, batch_size=documents)


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--output", default="lightning-output", metavar="FOLDER", help="checkpoints")
    options.add_argument("--resume", metavar="CHECKPOINT", help="continue from it")
    options = options.parse_args()
    model, tokenizer, training, held_out = prepare(options)
    collate = Collator(DataCollatorWithPadding(tokenizer))

    rewire = RewireCallback(interval=20)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accumulate_grad_batches=options.accumulate,
        callbacks=[rewire],
        default_root_dir=options.output,
        logger=False,
    )
    trainer.fit(
        LabelModule(model, options.lr, options.step),
        DataLoader(training, options.batch, shuffle=True, collate_fn=collate),
        DataLoader(held_out, 256, collate_fn=collate),
        ckpt_path=options.resume,
    )
    print(f"links were replaced {len(rewire.history)} times")
    print(f"{len(held_out)} documents kept from training: P@1 {trainer.callback_metrics['P@1']:.1f}")


if __name__ == "__main__":
    main()
