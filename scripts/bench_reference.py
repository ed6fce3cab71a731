#!/usr/bin/env python3
"""The Python peer of the benchmarks: sentence-transformers, told what to embed.

usage: bench_reference.py MODEL_DIR TEXTS_JSON THREADS

TEXTS_JSON is {"CLASS": ["text", ...], ...}. Says {"versions": {...}} when ready, then
answers each line

  {"class": "medium", "per_call": 32, "dtype": "float32", "vectors": "FILE"}

of its input with {"calls": [seconds, ...]}: the class was embedded, `per_call` texts at
a time, by `SentenceTransformer.encode` with its own defaults. The vectors, which are
not part of the time, lie in FILE as little-endian f32, row after row.
"""

import json
import os
import sys
import time
from importlib.metadata import version

# The model is a directory; nothing has to be asked of anybody.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers.utils.logging import disable_progress_bar


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__.strip())
    directory, texts, threads = sys.argv[1:]
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with open(texts, encoding="utf-8") as file:
        texts = json.load(file)
    torch.set_num_threads(int(threads))
    disable_progress_bar()
    models = {}

    def model(dtype):
        if dtype not in models:
            kwargs = {"dtype": getattr(torch, dtype)}
            models[dtype] = SentenceTransformer(directory, device="cpu", model_kwargs=kwargs).eval()
        return models[dtype]

    def say(answer):
        print(json.dumps(answer), file=answers, flush=True)

    packages = ["sentence-transformers", "transformers", "tokenizers", "torch", "numpy"]
    say({"versions": {name: version(name) for name in packages}})
    for line in sys.stdin:
        command = json.loads(line)
        encoder = model(command["dtype"])
        todo = texts[command["class"]]
        calls, vectors = [], []
        for first in range(0, len(todo), command["per_call"]):
            some = todo[first : first + command["per_call"]]
            begun = time.perf_counter()
            vectors.append(encoder.encode(some, batch_size=32, show_progress_bar=False))
            calls.append(time.perf_counter() - begun)
        np.concatenate(vectors).astype("<f4").tofile(command["vectors"])
        say({"calls": calls})


if __name__ == "__main__":
    main()
