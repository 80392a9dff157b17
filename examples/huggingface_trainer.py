"""Train with Hugging Face's Trainer: python examples/huggingface_trainer.py my.csv

With --step the output layer is trained in one fused pass by haste.optim.SGD; both optimizers go to the Trainer as one,
which schedules and saves them.
"""

import torch
from texts import parser, prepare
from transformers import DataCollatorWithPadding, TrainingArguments

from haste.integrations import Collator
from haste.integrations.huggingface import LabelTrainer, RankingMetrics, RewireCallback
from haste.optim import SGD, ChainedOptimizer


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--output", default="trainer-output", metavar="FOLDER", help="checkpoints")
    options.add_argument("--resume", action="store_true", help="continue from the last checkpoint there")
    options = options.parse_args()
    model, tokenizer, training, held_out = prepare(options)

    update, optimizers = None, (None, None)  # None: the Trainer makes an AdamW of all parameters
    if options.step:
        update = SGD(model.output.layer_parameters(), lr=0.02)
        encoder = torch.optim.AdamW(model.encoder.parameters(), lr=options.lr)
        optimizers = ChainedOptimizer(encoder, update), None
    rewire = RewireCallback(interval=20)
    trainer = LabelTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch,
            per_device_eval_batch_size=256,
            gradient_accumulation_steps=options.accumulate,
            learning_rate=options.lr,
            max_grad_norm=0,  # the default, 1.0, clips every step of a summed loss
            remove_unused_columns=False,  # it drops labels
            logging_strategy="epoch",
            save_strategy="epoch",
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
        ),
        data_collator=Collator(DataCollatorWithPadding(tokenizer)),
        train_dataset=training,
        eval_dataset=held_out,
        compute_metrics=RankingMetrics(model.output.num_labels),
        callbacks=[rewire],
        optimizers=optimizers,
        update=update,
    )
    trainer.train(resume_from_checkpoint=options.resume or None)
    found = trainer.evaluate()
    print(f"links were replaced {len(rewire.history)} times")
    print(f"{len(held_out)} documents kept from training: P@1 {found['eval_P@1']:.1f}, P@5 {found['eval_P@5']:.1f}")


if __name__ == "__main__":
    main()
