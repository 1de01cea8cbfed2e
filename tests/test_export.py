"""Export to `transformers`: its logits and ids equal ours, and the import gives the same weights."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import randomised
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinylib import checkpoint
from tinylib.checks import UserError
from tinylib.cli import main
from tinylib.export import audit, export_mlx, export_transformers, import_transformers
from tinylib.shards import Shards
from tinylib.tokenizer import Tokenizer, render
from tinylib.train import train


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


def test_other_tensors_and_files_are_refused_by_name(exported, tmp_path) -> None:
    _, folder, _ = exported
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.value_embeds.0.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model.value_embeds.0.weight is \(2,\) float32 there and missing here"):
        import_transformers(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"holds a model of type 'llama': only nanochat can be imported"):
        import_transformers(folder)
    with pytest.raises(FileNotFoundError, match=r"is no exported model: it has no config\.json"):
        import_transformers(tmp_path / "nothing")
    theirs = {"transformer.wte.weight": torch.ones(2, 2), "transformer.h.0.attn.c_q.weight": torch.ones(2, 2),
              "value_embeds.1.weight": torch.ones(2, 2), "resid_lambdas": torch.ones(2),
              "transformer.h.0.attn.ve_gate.weight": torch.ones(2)}
    (tmp_path / "nanochat").mkdir()
    torch.save(theirs, tmp_path / "nanochat" / "model_000650.pt")
    with pytest.raises(UserError, match=r"lacks resid_lambdas, transformer\.h\.attn\.ve_gate\.weight, value_emb"):
        import_transformers(tmp_path / "nanochat")


@pytest.fixture
def in_process(monkeypatch) -> None:
    """The audit in this process, because a fresh one takes seconds to start; the test of the verb has it."""
    monkeypatch.setattr("tinylib.export.ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))


@pytest.mark.usefixtures("in_process")
def test_mlx_computes_the_same_logits(exported, tmp_path) -> None:
    pytest.importorskip("mlx_lm")
    model, _, _ = exported
    out = export_mlx(tmp_path / "step", tmp_path / "mlx")
    facts = audit(tmp_path / "step", out)
    assert float(facts["largest_difference"]) < 1e-3 and facts["compared_ids"] > 10
    rows = load_file(out / "model.safetensors")["transformer.wte.weight"].square().mean(1).sqrt()
    assert torch.allclose(rows, torch.ones_like(rows))
    checkpoint.save(tmp_path / "other", randomised(replace(model.config, softcap=30.0)),
                    tokenizer=tmp_path / "step" / "tokenizer")
    with pytest.raises(UserError, match=r"softcap=30.0 is not the 15 that mlx-lm's nanochat always uses"):
        export_mlx(tmp_path / "other", tmp_path / "mlx")


@pytest.mark.usefixtures("in_process")
def test_the_audit_finds_another_model_another_tokenizer_and_a_lost_tie(exported, tmp_path) -> None:
    model, folder, tokenizer = exported
    facts = audit(tmp_path / "step", folder)
    assert facts["tied"] is model.config.tied and float(facts["largest_difference"]) < 1e-4
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "final_logit_softcapping": 14.0}))
    with pytest.raises(UserError, match="logits differ by"):
        audit(tmp_path / "step", folder)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.truncate(300).save_huggingface(folder / "tokenizer.json")
    with pytest.raises(UserError, match="ids of a text differ"):
        audit(tmp_path / "step", folder)


def test_without_transformers_the_error_says_what_to_install(exported, monkeypatch) -> None:
    _, folder, _ = exported
    monkeypatch.setattr("tinylib.export.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tinylib\[export\]'"):
        import_transformers(folder)


def test_the_chat_template_is_nanochats(exported) -> None:
    _, folder, tokenizer = exported
    theirs = AutoTokenizer.from_pretrained(folder)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for messages in (talk, [{"role": "system", "content": "Be brief."}, *talk, *talk]):
        assert theirs.apply_chat_template(messages)["input_ids"] == render(tokenizer, messages)
    assert theirs.apply_chat_template(talk, tokenize=False) == (
        "<|bos|><|user_start|>Hi<|user_end|><|assistant_start|>Hello<|assistant_end|>")
    assert theirs.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True).endswith(
        "<|user_end|><|assistant_start|>")
    with pytest.raises(Exception, match="roles are user and assistant"):
        theirs.apply_chat_template([*talk, {"role": "tool", "content": "x"}], tokenize=False)


def test_a_tokenizer_of_other_people_is_refused(exported) -> None:
    _, folder, tokenizer = exported
    assert Tokenizer.load_huggingface(folder / "tokenizer.json").tokens == tokenizer.tokens
    content = json.loads((folder / "tokenizer.json").read_text())
    for change in ({"normalizer": {"type": "NFC"}}, {"model": {**content["model"], "merges": []}}, {"model": {}}):
        (folder / "tokenizer.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match="is not one that tinylib exports"):
            Tokenizer.load_huggingface(folder / "tokenizer.json")


def test_a_run_goes_out_and_comes_back(tiny, tmp_path, capsys) -> None:
    def ran(*words: str) -> dict:
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    summary = train(tiny)
    out, back = str(tmp_path / "hub"), str(tmp_path / "back")
    facts = ran("export", tiny.run_dir, out)
    assert float(facts["largest_difference"]) < 1e-4 and facts["tied"] is False
    card = Path(out, "README.md").read_text()
    assert f"| validation | {summary.val_bpb:.4f} bits per byte |" in card and "library_name: transformers" in card
    assert ran("import", out, "--output", back, "--data", tiny.data)["vocab_size"] == tiny.model.vocab_size
    assert ran("eval", back)["bits_per_byte"] == pytest.approx(summary.val_bpb, abs=1e-5)
    words = ("--prompt", "Return", "--temperature", "0", "--max-tokens", "9")
    assert ran("sample", back, *words)["text"] == ran("sample", tiny.run_dir, *words)["text"]
    tied = ran("tie", back, "--max-tokens", str(Shards(tiny.data, "val").tokens))
    assert tied["before_bits_per_byte"] == pytest.approx(summary.val_bpb, abs=0.01)    # without the last window
    assert ran("export", tied["run"], str(tmp_path / "hub2"))["tied"] is True
    assert main(["import", out, "--output", back]) == 1 and "is taken" in capsys.readouterr().err
