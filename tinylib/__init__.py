"""tinylib: design, train and understand tiny language models, one notebook at a time.

Data flows down the modules in HOUSE; each imports only from those before it.  Importing `tinylib` does nothing: no
device is probed, no environment variable is read, no logging is set up.

Letters in shapes: B batch, T tokens, D dim, F mlp, V vocabulary, L layers, N heads, H head dim.
"""

__version__ = "0.3.0"

HOUSE = {
    "checks": "one message for a wrong value: field, value, rule, fix",
    "config": "configuration of a model and of a training run; presets; the table of tensors",
    "files": "atomic writes of files and folders",
    "hardware": "devices of this machine: precision, memory, peak FLOP/s, price",
    "allocator": "glibc malloc settings while training",
    "profiles": "smoke, cpu, gpu: every size that a notebook uses; the reader's own design",
    "doctor": "environment check",
    "rundir": "run directory: config, metric records, status, logs, pids, checkpoints",
    "events": "metrics as TensorBoard files",
    "sizing": "parameters, FLOPs, bytes; plans; the search for a shape",
    "plots": "figures of configurations, runs and tables",
    "corpus": "documents: installed documentation, Hugging Face hub, local files; train and validation split",
    "tokenizer": "BPE tokenizer: rustbpe trains, tiktoken encodes",
    "shards": "memory-mapped token files, the batch of step n, prefetch",
    "ngram": "n-gram model with Kneser–Ney smoothing, the baseline",
    "distributed": "process group, all-reduce, coordinated stop, records of failed ranks",
    "loss": "chunked cross-entropy of softcapped logits",
    "kv_cache": "keys and values of past tokens",
    "model": "the GPT",
    "optim": "Muon and AdamW by parameter role, learning-rate schedule, gradient scaling",
    "checkpoint": "atomic checkpoints, exact resume, starting from another run",
    "tying": "tied tables out of a trained untied checkpoint, and the other way round",
    "decoding": "one decoding step in few operations",
    "sampling": "sampling parameters",
    "generate": "sampling with a KV cache, streamed, in batches that sequences join and leave",
    "evaluate": "bits per byte by document, source and kind; confidence intervals",
    "opponents": "baselines: uniform, n-grams, xz; paired comparison; verbatim copies",
    "tasks": "CORE, minimal pairs",
    "recorder": "step times, metric records, status and event files of a training run",
    "train": "the training loop",
    "launch": "torchrun from a notebook cell, live view of a run, several machines, Slurm",
    "experiments": "shapes × seeds × FLOP budgets, run and resumed; records; comparisons with intervals",
    "export": "conversion to and from transformers",
    "chat": "fine-tuning on conversations, a terminal, evaluation of answers",
    "serve": "OpenAI-compatible server and its page",
    "course": "the course: runner and report, exercises, explorer, figures of single notebooks",
    "cli": "command line",
}
"""The modules in the order in which data flows, and the one idea of each."""
