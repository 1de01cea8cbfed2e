"""Export to `transformers`: its logits and ids equal ours, and the import gives the same weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import randomised
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinylib import checkpoint
from tinylib.checks import UserError
from tinylib.export import export_transformers, import_transformers
from tinylib.tokenizer import Tokenizer


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def exported(request, tiny, tmp_path):
    """A model, the folder it was exported to, and its tokenizer."""
    model = randomised(replace(tiny.model, tied=request.param), std=0.1)
    checkpoint.save(tmp_path / "step", model, tokenizer=Path(tiny.data) / "tokenizer")
    return model, export_transformers(tmp_path / "step", tmp_path / "hub"), Tokenizer.load(tmp_path / "step/tokenizer")


def test_transformers_loads_the_same_model(exported) -> None:
    model, folder, _ = exported
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    x_BT = torch.randint(model.config.vocab_size, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(x_BT), theirs(input_ids=x_BT).logits, atol=1e-4, rtol=0)
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not model.config.tied


def test_transformers_loads_the_same_tokenizer(exported) -> None:
    _, folder, tokenizer = exported
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ("Return the größe of 1234 strings.", "  tab\tand\n\nlines ", "語🎈"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert theirs.bos_token_id == tokenizer.bos


def test_import_gives_the_model_back(exported) -> None:
    model, folder, _ = exported
    back = import_transformers(folder)
    assert back.config == model.config
    for (name, weight), (other, same) in zip(model.named_parameters(), back.named_parameters(), strict=True):
        assert name == other and torch.equal(weight, same)


def test_import_of_another_architecture_names_both_values(exported) -> None:
    model, folder, _ = exported
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "intermediate_size": 96}))
    with pytest.raises(UserError, match=f"intermediate_size=96 must be {model.config.mlp_dim}"):
        import_transformers(folder)
