"""lm-evaluation-harness: a local task of minimal pairs, scored by it on an exported model as by `tinylib.tasks`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import randomised

from tinylib import checkpoint, tasks
from tinylib.export import export_transformers
from tinylib.shards import Shards
from tinylib.tasks.scoring import score_task

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("default")    # its libraries warn
def test_it_answers_each_item_as_we_do(tiny, tmp_path, monkeypatch) -> None:
    pytest.importorskip("lm_eval", reason="tinylib[lm-eval] is not installed")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    shards, model = Shards(tiny.data, "val"), randomised(tiny.model, std=0.1).eval()
    order = tasks.suite(shards.texts(), 100)[0]
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "order.jsonl").write_text("".join(json.dumps(item) + "\n" for item in order.items))
    (task,) = tasks.minimal_pairs(tmp_path / "pairs")
    fits = [number for number, right in enumerate(score_task(model, shards.tokenizer, task)) if right is not None]
    assert len(fits) > 20

    checkpoint.save(tmp_path / "step", model, tokenizer=Path(tiny.data) / "tokenizer")
    export = export_transformers(tmp_path / "step", tmp_path / "hub")
    theirs = {
        "task": "order", "dataset_path": "json", "validation_split": "validation", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"validation": str(tmp_path / "pairs" / "order.jsonl")}}, "doc_to_text": "",
        "target_delimiter": "", "doc_to_target": 0, "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "metric_list": [{"metric": "acc"}]}
    found = lm_eval.simple_evaluate(HFLM(pretrained=str(export), device="cpu", batch_size=8), tasks=[theirs],
                                    bootstrap_iters=0)
    answers = {sample["doc_id"]: bool(sample["acc"]) for sample in found["samples"]["order"]}
    ours = score_task(model, shards.tokenizer, task)
    assert [answers[number] for number in fits] == [ours[number] for number in fits]
    assert len(set(answers.values())) == 2
