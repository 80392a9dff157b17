"""Train in a loop of your own, torch.optim.AdamW and gradient accumulation: python examples/plain_pytorch.py my.csv

With --step the output layer is trained in one fused pass by haste.optim.SGD, and torch.optim.AdamW trains the encoder.
"""

import numpy as np
import torch
from scipy.sparse import csr_matrix
from texts import parser, prepare
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from haste import metrics
from haste.integrations import Collator, csr_positives
from haste.optim import SGD
from haste.rewire import Schedule


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    model, tokenizer, training, held_out = prepare(options)
    collate = Collator(DataCollatorWithPadding(tokenizer))
    batches = DataLoader(training, options.batch, shuffle=True, collate_fn=collate)

    # The optimizer that the layer's weights belong to is the one that rewiring must know.
    if options.step:
        update = SGD(model.output.layer_parameters(), lr=0.02)
        optimizer = torch.optim.AdamW(model.encoder.parameters(), lr=options.lr)
        of_layer = update
    else:
        of_layer = optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    total = options.epochs * -(-len(batches) // options.accumulate)
    rewiring = Schedule(interval=20, fraction=0.25, end=0.66, total_steps=total)

    steps = 0
    for epoch in range(options.epochs):
        model.train()
        loss_sum = 0.0
        for number, batch in enumerate(batches, 1):
            positives = batch.pop("positives")
            features = model(**batch)
            if options.step:  # the layer is trained now, once every micro-batch; what is left is for the encoder
                loss = model.output.step(features, positives, update)
            else:
                loss = model.output.loss(features, positives)
            loss.backward()
            loss_sum += loss.item()
            if number % options.accumulate and number < len(batches):
                continue
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if rewiring.due(steps):
                last = (features.detach(), positives)
                fraction = rewiring.fraction_at(steps)
                model.output.rewire(fraction, of_layer, regrow="gradient", batch=last, step=steps)
        print(f"epoch {epoch + 1}: loss {loss_sum / len(training):.3f} a document")

    model.eval()
    ranked = []
    with torch.no_grad():
        for batch in DataLoader(held_out, 256, collate_fn=collate):
            del batch["positives"]
            ranked.append(model.output.topk(model(**batch), k=5)[1])
    offsets, labels = csr_positives(held_out.labels)
    truth = csr_matrix((np.ones(len(labels)), labels, offsets), (len(held_out), model.output.num_labels))
    found = metrics.as_percent(metrics.evaluate(torch.cat(ranked).numpy(), truth, k=5))
    print(f"{len(held_out)} documents kept from training: P@1 {found['P@1']:.1f}, P@5 {found['P@5']:.1f}")


if __name__ == "__main__":
    main()
