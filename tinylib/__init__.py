"""tinylib: design, train and understand tiny language models, one notebook at a time.

The modules form a line along which data flows; each imports only from those before it:

    config · hardware · rundir · sizing · plots · corpus · tokenizer · shards · world · model · optim ·
    checkpoint · generate · evaluate · train · launch · export · course · exercises

Importing `tinylib` does nothing: no device is probed, no environment variable is read, no logging is set up.

Letters in shapes: B batch, T tokens, D dim, F mlp, V vocabulary, L layers, N heads, H head dim.
"""

__version__ = "0.1.0"
