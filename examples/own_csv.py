"""Train on a csv of your own, keep the model, and ask it: python examples/own_csv.py my.csv --ask "some text"

Any other file or folder that `haste data check` can read will do as well.
"""

import argparse

import haste
from haste.config import Data
from haste.data.formats import detect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="csv with a line of column names")
    parser.add_argument("--text", help="column of the texts (default: text; several: title+body)")
    parser.add_argument("--labels", help="column of the labels (default: labels)")
    parser.add_argument("--separator", help="between the labels (default: found)")
    parser.add_argument("--ask", action="append", default=[], metavar="TEXT", help="a text to label; may be repeated")
    parser.add_argument("--save", default="own-model", metavar="FOLDER", help="where the model goes")
    options = parser.parse_args()

    source = detect(Data(path=options.path, text=options.text, labels=options.labels, separator=options.separator))
    print(f"{source.format}: {source.reason}")
    documents = [(record.text, record.labels) for record in source.documents("train")]

    # Every tenth document is kept from training, to see how good the model is on texts it has not met.
    held_out = documents[::10]
    training = [document for number, document in enumerate(documents) if number % 10]
    model = haste.Classifier()
    model.fit([text for text, _ in training], [labels for _, labels in training])

    best, _ = model.predict_topk([text for text, _ in held_out], k=1)
    hits = sum(label in labels for label, (_, labels) in zip(best[:, 0], held_out, strict=True))
    print(f"the best label is right for {hits} of {len(held_out)} documents that were not trained on")

    model.save_pretrained(options.save)
    model = haste.Classifier.from_pretrained(options.save)  # in another program, later
    for text in options.ask:
        print(text)
        for label, probability in zip(*(row[0] for row in model.predict_topk([text], k=5)), strict=True):
            print(f"{probability:8.4f}  {label}")


if __name__ == "__main__":
    main()
