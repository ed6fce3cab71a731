#!/usr/bin/env python3
"""The Python peers of the benchmarks, told what to embed.

usage: bench_peers.py export MODEL_DIR INTO
       bench_peers.py LIBRARY DTYPE MODEL_DIR TEXTS_JSON THREADS ONNX_DIR

`export` writes INTO/model.onnx, and INTO/fused.onnx with what ONNX Runtime's optimizer
for BERT makes of it: attention, GELU and LayerNorm are an operator each.

LIBRARY is sentence-transformers, sentence-transformers-cuda (on a GPU), ONNX-Runtime or
OpenVINO, one a process, so that no thread pool meets another one's. TEXTS_JSON is {"CLASS": ["text", ...], ...}. Says
{"versions": {...}} when ready, or {"left_out": "why"}, then answers each line

  {"class": "medium", "per_call": 32, "vectors": "FILE"}

of its input with {"calls": [seconds, ...], "note": "batches of 8"}: the class was
embedded, `per_call` texts at a time, tokenising, pooling and normalisation included. The
vectors, which are not part of the time, lie in FILE as little-endian f32, row after row.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

# The model is a directory; nothing has to be asked of anybody.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
# sentence-transformers' default, which users of ONNX Runtime keep.
BATCH = 32
# On a GPU one of these is best, which depends on the texts and on the model.
GPU_BATCHES = [32, 128, 512, 2048]
# OpenVINO is served best by one of these, which depends on the texts and on the CPU.
OPENVINO_BATCHES = [1, 8, 32]


class LeftOut(Exception):
    """Why this peer cannot take part here."""


def export(directory, into):
    import torch
    from transformers import AutoModel

    # The optimizer knows attention as it looks without torch's own fused operator.
    model = AutoModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *tensors):
            return self.model(**dict(zip(INPUTS, tensors))).last_hidden_state

    ids = torch.full((2, 9), 5)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    output = "last_hidden_state"
    with torch.no_grad():
        torch.onnx.export(
            Hidden().eval(),
            (ids, mask, torch.zeros_like(ids)),
            into / "model.onnx",
            input_names=INPUTS,
            output_names=[output],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in [*INPUTS, output]},
            opset_version=17,
            dynamo=False,
        )
    try:
        from onnxruntime.transformers import optimizer
    except ImportError:
        return
    fused = optimizer.optimize_model(
        str(into / "model.onnx"),
        model_type="bert",
        num_heads=model.config.num_attention_heads,
        hidden_size=model.config.hidden_size,
        opt_level=1,
        use_gpu=False,
    )
    if (found := fused.get_fused_operator_statistics())["Attention"] != model.config.num_hidden_layers:
        raise LeftOut(f"ONNX Runtime's optimizer does not know this model's attention: {found}")
    fused.save_model_to_file(str(into / "fused.onnx"))


def best_size(peer, sizes, todo):
    """Sets the peer's size of batches to that which embeds this soonest."""

    def seconds(size):
        peer.size = size
        # The first time compiles kernels for each shape.
        best = []
        for _ in range(3):
            begun = time.perf_counter()
            for texts in todo:
                peer.embed(texts)
            best.append(time.perf_counter() - begun)
        return min(best[1:])

    sizes = [size for size in sizes if size <= max(map(len, todo))] or sizes[:1]
    peer.size = min(sizes, key=seconds) if len(sizes) > 1 else sizes[0]


class SentenceTransformers:
    """`SentenceTransformer.encode` with its own defaults."""

    packages = ["sentence-transformers", "transformers", "tokenizers", "torch", "numpy"]
    device = "cpu"
    size = BATCH

    def __init__(self, directory, dtype, threads, _):
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        if self.device == "cuda" and not torch.cuda.is_available():
            raise LeftOut("its torch sees no GPU")
        torch.set_num_threads(threads)
        disable_progress_bar()
        kwargs = {"dtype": getattr(torch, dtype)}
        self.model = SentenceTransformer(str(directory), device=self.device, model_kwargs=kwargs).eval()

    def tune(self, todo):
        return ""

    def embed(self, texts):
        return self.model.encode(texts, batch_size=self.size, show_progress_bar=False)


class SentenceTransformersOnGpu(SentenceTransformers):
    """The same on a GPU, with the best size of batches."""

    device = "cuda"

    def tune(self, todo):
        best_size(self, GPU_BATCHES, todo)
        return f"batches of {self.size}"


class Batches:
    """Texts to padded batches of texts of like lengths, and tokens' vectors to texts'."""

    def __init__(self, directory):
        import numpy as np
        from tokenizers import Tokenizer

        self.np = np
        limit = json.loads((directory / "sentence_bert_config.json").read_text())["max_seq_length"]
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(limit)
        self.width = json.loads((directory / "config.json").read_text())["hidden_size"]
        modules = json.loads((directory / "modules.json").read_text())
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        pooling = json.loads((directory / modules[1]["path"] / "config.json").read_text())
        if kinds != ["Transformer", "Pooling", "Normalize"] or not pooling["pooling_mode_mean_tokens"]:
            raise LeftOut("only mean pooling and normalisation are written here")

    def made_of(self, texts, size):
        """(which texts, the model's inputs) of each batch, longest texts first."""
        np = self.np
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(tokens)), key=lambda place: -len(tokens[place]))
        for first in range(0, len(order), size):
            places = order[first : first + size]
            ids = np.zeros((len(places), len(tokens[places[0]])), np.int64)
            mask = np.zeros_like(ids)
            for row, place in enumerate(places):
                ids[row, : len(tokens[place])] = tokens[place]
                mask[row, : len(tokens[place])] = 1
            yield places, [ids, mask, np.zeros_like(ids)]

    def pooled(self, hidden, mask):
        """The mean of each text's tokens, of length one; its count need not be known."""
        sums = self.np.matmul(mask[:, None, :].astype(self.np.float32), hidden)[:, 0]
        return sums / self.np.linalg.norm(sums, axis=1, keepdims=True)


class OnnxRuntime:
    """The fused graph, with all CPUs for each operator."""

    packages = ["onnxruntime", "onnx", "tokenizers", "numpy"]

    def __init__(self, directory, dtype, threads, onnx):
        import onnxruntime

        if dtype != "float32":
            raise LeftOut("its CPU kernels compute in float32")
        self.batches = Batches(directory)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(onnx / "fused.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def tune(self, todo):
        return f"batches of {BATCH}"

    def embed(self, texts):
        vectors = self.batches.np.empty((len(texts), self.batches.width), self.batches.np.float32)
        for places, inputs in self.batches.made_of(texts, BATCH):
            [hidden] = self.session.run(None, dict(zip(INPUTS, inputs)))
            vectors[places] = self.batches.pooled(hidden, inputs[1])
        return vectors


class OpenVino:
    """Tuned for throughput: a stream a CPU, each with a queue of requests."""

    packages = ["openvino", "tokenizers", "numpy"]

    def __init__(self, directory, dtype, threads, onnx):
        import openvino

        core = openvino.Core()
        if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise LeftOut("this CPU computes no bfloat16")
        self.batches = Batches(directory)
        precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
        compiled = core.compile_model(
            str(onnx / "model.onnx"),
            "CPU",
            {
                "PERFORMANCE_HINT": "THROUGHPUT",
                "NUM_STREAMS": threads,
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": precision,
            },
        )
        if (used := compiled.get_property("INFERENCE_PRECISION_HINT").to_string()) != precision:
            raise LeftOut(f"it computes in {used} instead")
        self.streams = compiled.get_property("NUM_STREAMS")
        self.queue = openvino.AsyncInferQueue(compiled)
        self.size = OPENVINO_BATCHES[0]

    def tune(self, todo):
        best_size(self, OPENVINO_BATCHES, todo)
        return f"{self.streams} streams, batches of {self.size}"

    def embed(self, texts):
        vectors = self.batches.np.empty((len(texts), self.batches.width), self.batches.np.float32)

        def done(request, batch):
            places, mask = batch
            vectors[places] = self.batches.pooled(request.get_output_tensor(0).data, mask)

        self.queue.set_callback(done)
        for places, inputs in self.batches.made_of(texts, self.size):
            self.queue.start_async(dict(zip(INPUTS, inputs)), (places, inputs[1]))
        self.queue.wait_all()
        return vectors


LIBRARIES = {
    "sentence-transformers": SentenceTransformers,
    "sentence-transformers-cuda": SentenceTransformersOnGpu,
    "ONNX-Runtime": OnnxRuntime,
    "OpenVINO": OpenVino,
}


def serve(library, dtype, directory, texts, threads, onnx, say):
    import numpy as np

    peer = library(directory, dtype, threads, onnx)
    say({"versions": {name: version(name) for name in library.packages}})
    notes = {}
    for line in sys.stdin:
        command = json.loads(line)
        shape = command["class"], command["per_call"]
        all_texts = texts[command["class"]]
        todo = [all_texts[first : first + shape[1]] for first in range(0, len(all_texts), shape[1])]
        # Once, and with the time it takes counted for nobody.
        notes[shape] = notes.get(shape) or (peer.tune(todo), getattr(peer, "size", None))
        note, peer.size = notes[shape]
        calls, vectors = [], []
        for some in todo:
            begun = time.perf_counter()
            vectors.append(peer.embed(some))
            calls.append(time.perf_counter() - begun)
        np.concatenate(vectors).astype("<f4").tofile(command["vectors"])
        say({"calls": calls, "note": note})


def main():
    if len(sys.argv) not in (4, 7):
        sys.exit(__doc__.strip())
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        print(json.dumps(answer), file=answers, flush=True)

    try:
        if sys.argv[1] == "export":
            export(Path(sys.argv[2]), Path(sys.argv[3]))
            say({})
            return
        library, dtype, directory, texts, threads, onnx = sys.argv[1:]
        texts = json.loads(Path(texts).read_text(encoding="utf-8"))
        serve(LIBRARIES[library], dtype, Path(directory), texts, int(threads), Path(onnx), say)
    except (ImportError, LeftOut) as why:
        say({"left_out": str(why)})


if __name__ == "__main__":
    main()
