"""Export to `transformers` and import from there: weights of `NanoChatForCausalLM`, tokenizer as `tokenizer.json`.

`transformers` implements the same October-2025 nanochat architecture, so the conversion is exact.  `audit` shows it.
"""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tinylib import checkpoint, sizing
from tinylib.checks import UserError
from tinylib.config import GPTConfig, TrainConfig
from tinylib.files import read_json, write_folder
from tinylib.generate import check_tokenizer
from tinylib.model import GPT, NORM_EPS
from tinylib.optim import Optimizer
from tinylib.rundir import Eval, RunDirectory, plain
from tinylib.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import NanoChatConfig

_PARTS = {"attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
          "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
          "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
_MLX = {"attention.query": "attn.c_q", "attention.key": "attn.c_k", "attention.value": "attn.c_v",
        "attention.output": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}

_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
          "README.md")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% set system = messages[0]['role'] == 'system' %}"
    "{% for message in (messages[1:] if system else messages) %}{% if message['role'] == 'user' %}"
    "<|user_start|>{{ messages[0]['content'] + '\n\n' if system and loop.first else '' }}{{ message['content'] }}"
    "<|user_end|>{% elif message['role'] == 'assistant' %}"
    "<|assistant_start|>{{ message['content'] }}<|assistant_end|>{% else %}"
    "{{ raise_exception('roles are user and assistant') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant_start|>{% endif %}")
"""nanochat's conversation format, `tokenizer.render`, as a Jinja template."""


def export_transformers(folder: str | Path, out: str | Path) -> Path:
    """Export a checkpoint and its tokenizer to `out`, for `AutoModelForCausalLM` and `AutoTokenizer.from_pretrained`.

    With a chat template and a model card.  The folder is written atomically.  Raises FileExistsError if `out` holds
    anything but an earlier export.
    """
    model, tokenizer = checkpoint.load_model(folder), Tokenizer.load(Path(folder) / checkpoint.TOKENIZER)
    config = hf_config(model.config, tokenizer.bos)
    config.architectures = ["NanoChatForCausalLM"]
    return _write(Path(folder), Path(out), model, tokenizer, config, hf_state_dict(model))


def export_mlx(folder: str | Path, out: str | Path) -> Path:
    """Export a checkpoint to `out` for `mlx_lm.load`, whose `nanochat` has a softcap of 15 and always two tables.

    Its norms have an eps of 1e-5, so each row of the embedding is scaled to an RMS of 1, which changes nothing behind a
    norm; a tied table is written twice.  Raises UserError for another softcap, FileExistsError as the other export.

    Source: mlx-lm 0.32.2, mlx_lm/models/nanochat.py.
    """
    model, tokenizer = checkpoint.load_model(folder), Tokenizer.load(Path(folder) / checkpoint.TOKENIZER)
    if model.config.softcap != 15:
        raise UserError(f"softcap={model.config.softcap} is not the 15 that mlx-lm's nanochat always uses: export to "
                        "transformers instead")
    shape = model.config
    config = {"model_type": "nanochat", "hidden_size": shape.dim, "num_hidden_layers": shape.depth,
              "num_attention_heads": shape.n_head, "num_key_value_heads": shape.n_head, "vocab_size": shape.vocab_size,
              "max_position_embeddings": shape.seq_len, "intermediate_size": shape.mlp_dim,
              "rope_theta": shape.rope_theta, "bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.bos}
    tensors = {_renamed(name, "transformer.wte.weight", "transformer.h", _MLX): weight.detach()
               for name, weight in model.named_parameters()}
    wte_VD = model.wte.weight.detach()
    tensors |= {"transformer.wte.weight": wte_VD / wte_VD.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12),
                "lm_head.weight": model.unembedding.detach().clone()}
    return _write(Path(folder), Path(out), model, tokenizer, config, tensors)


def _write(folder: Path, out: Path, model: GPT, tokenizer: Tokenizer, config: NanoChatConfig | dict[str, Any],
           tensors: dict[str, Tensor]) -> Path:
    """Write an export, atomically."""
    out = out.resolve()
    with write_folder(out, _FILES) as part:
        if isinstance(config, dict):
            (part / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        else:
            config.save_pretrained(part)
        checkpoint.save_tensors(tensors, part / "model.safetensors", {"format": "pt"})
        tokenizer.save_huggingface(part / "tokenizer.json")
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|bos|>",
                 "model_max_length": model.config.seq_len, "clean_up_tokenization_spaces": False,
                 "chat_template": CHAT_TEMPLATE}
        (part / "tokenizer_config.json").write_text(json.dumps(names, indent=2), encoding="utf-8")
        (part / "README.md").write_text(model_card(folder, model.config), encoding="utf-8")
    return out


def model_card(folder: Path, config: GPTConfig) -> str:
    """Model card of a checkpoint: shape, data, scores and provenance, as far as its run recorded them."""
    run, state = RunDirectory(folder.resolve().parent.parent), read_json(folder / checkpoint.TRAIN_STATE) or {}
    scores = [record for record in run.records() if isinstance(record, Eval) and record.step == state.get("step")]
    about, train = (run.read_config() if run.exists() else {}), state.get("train", {})
    rows = {
        "parameters": f"{sizing.parameters(config).total:,}", "layers × width": f"{config.depth} × {config.dim}",
        "vocabulary, context": f"{config.vocab_size:,}, {config.seq_len:,}",
        "tables": "tied" if config.tied else "untied",
        "training": train and f"{state['step']:,} steps of {train['total_batch_size']:,} tokens, seed {train['seed']}",
        "shards": state.get("data"), "validation": scores and f"{scores[-1].val_bpb:.4f} bits per byte",
        "git commit": about.get("git_commit"), "versions": ", ".join(
            f"{name} {version}" for name, version in about.get("versions", {}).items())}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)
    return (f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {run.name}\n\n"
            "A GPT in the architecture of nanochat, trained with tinylib: a base model, which continues text and does "
            f"not follow instructions.\n\n| | |\n| --- | --- |\n{table}\n")


def audit(folder: str | Path, out: str | Path) -> dict[str, Any]:
    """Load an export in a fresh process, with nothing of ours, and compare its logits, ids and tie with ours.

    Raises UserError if logits differ by more than 1e-3, an id differs, or one table became two or two one.
    """
    model, tokenizer = checkpoint.load_model(folder), Tokenizer.load(Path(folder) / checkpoint.TOKENIZER)
    ids = torch.arange(min(64, model.config.seq_len)) * 7 % tokenizer.vocab_size
    text = "Return the größe of 1234 strings:\n\n    語🎈\t()"
    stored = load_file(Path(out) / "model.safetensors")
    mlx = "transformer.wte.weight" in stored
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        logits, their_ids, tied = pool.submit(_theirs, str(out), ids.tolist(), text, mlx).result()
    with torch.no_grad():
        apart = float((model(ids[None])[0] - torch.tensor(logits)).abs().max())
    wrong = [f"logits differ by {apart:.1e}" if apart > 1e-3 else None,
             "ids of a text differ" if their_ids != tokenizer.encode(text) else None,
             f"its tables are {'tied' if tied else 'untied'}" if not mlx and (
                 tied != model.config.tied or ("lm_head.weight" in stored) == tied) else None]
    if any(wrong):
        raise UserError(f"{out} is not the model of {folder}: {', '.join(filter(None, wrong))}")
    return {"compared_logits": ids.numel() * model.config.vocab_size, "largest_difference": f"{apart:.1e}",
            "compared_ids": len(their_ids), "tied": tied}


def _theirs(out: str, ids: list[int], text: str, mlx: bool) -> tuple[list[Any], list[int], bool]:
    """Logits and ids of an export, and whether it has one table, by the library that it is for."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    their_ids = AutoTokenizer.from_pretrained(out)(text, add_special_tokens=False)["input_ids"]
    if mlx:
        import mlx.core as mx
        from mlx_lm import load

        return load(out)[0](mx.array([ids]))[0].tolist(), their_ids, False
    theirs = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([ids])).logits[0].tolist()
    one = theirs.get_output_embeddings().weight.data_ptr() == theirs.get_input_embeddings().weight.data_ptr()
    return logits, their_ids, one and theirs.config.tie_word_embeddings


def import_run(folder: str | Path, run: RunDirectory, data: str) -> Path:
    """Import an exported folder as step 0 of a new run, which eval, sample and tie take; returns its checkpoint.

    `data` is a folder of shards that the tokenizer of the model made.  Raises as `import_transformers` and
    `Tokenizer.load_huggingface` do, and FileExistsError if the run is there.
    """
    if run.path.exists():
        raise FileExistsError(f"run={str(run.path)!r} is taken: choose another with --output, or remove it")
    model, tokenizer = import_transformers(folder), Tokenizer.load_huggingface(Path(folder) / "tokenizer.json")
    check_tokenizer(model, tokenizer)
    config = TrainConfig(model=model.config, data=data, run_dir=str(run.path), total_batch_size=model.config.seq_len,
                         device_batch_size=1)
    run.write_config(config, world_size=1)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save(temporary)
        checkpoint.save(run.checkpoint_path(0), model, Optimizer(model, config), {
            "step": 0, "train": plain(config), "data": None, "dtype": "float32"}, Path(temporary))
    run.write_status("finished", step=0, steps=0)
    return run.checkpoint(0)


def import_transformers(folder: str | Path) -> GPT:
    """Import a `NanoChatForCausalLM` from a folder, such as one that `export_transformers` wrote.

    Raises UserError if it has what our model lacks, such as grouped heads or an MLP that is not 4·D wide.
    """
    _need_transformers()
    from transformers import NanoChatConfig

    stated, own = read_json(Path(folder) / "config.json"), sorted(Path(folder).glob("model_*.pt"))
    if own:
        raise UserError(f"{folder} is a checkpoint of nanochat itself; this library's model lacks "
                        f"{', '.join(_foreign_names(own[-1])) or 'nothing of it, but reads no pickle'}")
    if stated is None:
        raise FileNotFoundError(f"{folder} is no exported model: it has no config.json")
    if stated.get("model_type") != "nanochat":
        raise UserError(f"{folder} holds a model of type {stated.get('model_type')!r}: only nanochat can be imported")
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
    model, stored = GPT(config), checkpoint.load_tensors(Path(folder) / "model.safetensors")
    own_tensors = {hf_name(name): weight for name, weight in model.named_parameters()}
    if wrong := checkpoint.mismatches({name: tensor.float() for name, tensor in stored.items()}, own_tensors):
        raise UserError(f"{folder} is not a model of ours: " + "; ".join(wrong))
    with torch.no_grad():
        for name, weight in own_tensors.items():
            weight.copy_(stored[name])
    return model.eval()


def _foreign_names(file: Path) -> list[str]:
    """Names of tensors in a `.pt` file of nanochat that our model lacks, found without unpickling."""
    with zipfile.ZipFile(file) as packed:
        content = b"".join(packed.read(name) for name in packed.namelist() if name.endswith("data.pkl"))
    found = re.findall(rb"[a-z_][\w.]*(?:\.weight|_lambdas?)", content)
    names = {re.sub(r"\.\d+", "", name.decode()) for name in found}
    ours = {"transformer.wte.weight", "lm_head.weight", *(f"transformer.h.{part}.weight" for part in _MLX.values())}
    return sorted(names - ours)


def hf_config(config: GPTConfig, bos: int | None = None) -> NanoChatConfig:
    """`NanoChatConfig` equivalent to `config`; sets every field whose default differs."""
    _need_transformers()
    from transformers import NanoChatConfig

    return NanoChatConfig(
        vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.mlp_dim,
        num_hidden_layers=config.depth, num_attention_heads=config.n_head, num_key_value_heads=config.n_head,
        max_position_embeddings=config.seq_len, rms_norm_eps=NORM_EPS, final_logit_softcapping=config.softcap,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, tie_word_embeddings=config.tied,
        bos_token_id=bos, eos_token_id=bos, pad_token_id=None)


def _need_transformers() -> None:
    if find_spec("transformers") is None:
        raise UserError("transformers is not installed: pip install 'tinylib[export]'")


def hf_name(name: str) -> str:
    """Parameter name in `NanoChatForCausalLM` of our tensor `name`.

    >>> hf_name("blocks.3.mlp.up.weight")
    'model.layers.3.mlp.fc1.weight'
    """
    return _renamed(name, "model.embed_tokens.weight", "model.layers", _PARTS)


def _renamed(name: str, wte: str, layers: str, parts: dict[str, str]) -> str:
    """Name of our tensor `name` in a library that calls the embedding `wte` and the blocks `layers`."""
    if not name.startswith("blocks."):
        return wte if name == "wte.weight" else name
    _, layer, *part, _ = name.split(".")
    return f"{layers}.{layer}.{parts['.'.join(part)]}.weight"


def hf_state_dict(model: GPT) -> dict[str, Tensor]:
    """State dict with the names of `NanoChatForCausalLM`; a tied table is in it once."""
    return {hf_name(name): weight.detach() for name, weight in model.named_parameters()}
