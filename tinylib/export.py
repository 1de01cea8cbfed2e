"""Conversion to and from `transformers`: weights of `NanoChatForCausalLM`, tokenizer as `tokenizer.json`.

`transformers` implements the same October-2025 nanochat architecture, so the conversion is exact.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from tinylib import checkpoint
from tinylib.checks import UserError
from tinylib.config import GPTConfig
from tinylib.files import write_folder
from tinylib.model import GPT, NORM_EPS
from tinylib.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import NanoChatConfig

_PARTS = {"attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
          "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
          "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}

_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def export_transformers(folder: str | Path, out: str | Path) -> Path:
    """Export a checkpoint and its tokenizer to `out`, for `AutoModelForCausalLM` and `AutoTokenizer.from_pretrained`.

    The folder is written atomically.  Raises FileExistsError if `out` holds anything but an earlier export.
    """
    folder, out = Path(folder), Path(out).resolve()
    model = checkpoint.load_model(folder)
    tokenizer = Tokenizer.load(folder / checkpoint.TOKENIZER)
    with write_folder(out, _FILES) as part:
        config = hf_config(model.config, tokenizer.bos)
        config.architectures = ["NanoChatForCausalLM"]
        config.save_pretrained(part)
        checkpoint.save_tensors(hf_state_dict(model), part / "model.safetensors", {"format": "pt"})
        tokenizer.save_huggingface(part / "tokenizer.json")
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|bos|>",
                 "model_max_length": model.config.seq_len, "clean_up_tokenization_spaces": False}
        (part / "tokenizer_config.json").write_text(json.dumps(names, indent=2), encoding="utf-8")
    return out


def import_transformers(folder: str | Path) -> GPT:
    """Import a `NanoChatForCausalLM` from a folder, such as one that `export_transformers` wrote.

    Raises UserError if it has what our model lacks, such as grouped heads or an MLP that is not 4·D wide.
    """
    from transformers import NanoChatConfig

    theirs = NanoChatConfig.from_pretrained(folder)
    config = GPTConfig(depth=theirs.num_hidden_layers, dim=theirs.hidden_size, vocab_size=theirs.vocab_size,
                       head_dim=theirs.hidden_size // theirs.num_attention_heads,
                       seq_len=theirs.max_position_embeddings, tied=theirs.tie_word_embeddings,
                       rope_theta=theirs.rope_parameters["rope_theta"], softcap=theirs.final_logit_softcapping)
    expected = hf_config(config)
    wrong = [f"{name}={getattr(theirs, name)} must be {getattr(expected, name)}"
             for name in ("intermediate_size", "num_key_value_heads", "hidden_act", "rms_norm_eps", "attention_bias")
             if getattr(theirs, name) != getattr(expected, name)]
    if wrong:
        raise UserError(f"{folder} is not a model of ours: " + "; ".join(wrong))
    model, stored = GPT(config), load_file(Path(folder) / "model.safetensors")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(stored[hf_name(name)])
    return model.eval()


def hf_config(config: GPTConfig, bos: int | None = None) -> NanoChatConfig:
    """`NanoChatConfig` equivalent to `config`; sets every field whose default differs."""
    from transformers import NanoChatConfig

    return NanoChatConfig(
        vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.mlp_dim,
        num_hidden_layers=config.depth, num_attention_heads=config.n_head, num_key_value_heads=config.n_head,
        max_position_embeddings=config.seq_len, rms_norm_eps=NORM_EPS, final_logit_softcapping=config.softcap,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, tie_word_embeddings=config.tied,
        bos_token_id=bos, eos_token_id=bos, pad_token_id=None)


def hf_name(name: str) -> str:
    """Parameter name in `NanoChatForCausalLM` of our tensor `name`.

    >>> hf_name("blocks.3.mlp.up.weight")
    'model.layers.3.mlp.fc1.weight'
    """
    if name == "wte.weight":
        return "model.embed_tokens.weight"
    if name == "lm_head.weight":
        return name
    _, layer, *part, _ = name.split(".")
    return f"model.layers.{layer}.{_PARTS['.'.join(part)]}.weight"


def hf_state_dict(model: GPT) -> dict[str, Tensor]:
    """State dict with the names of `NanoChatForCausalLM`; a tied table is in it once."""
    return {hf_name(name): weight.detach() for name, weight in model.named_parameters()}
