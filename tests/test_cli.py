"""The command line: a table for people, one JSON object at the end, one line and a code where it can't be done."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tinylib import __main__ as cli
from tinylib import sizing
from tinylib.config import PRESETS, TrainConfig, to_json
from tinylib.flags import train_command, train_config
from tinylib.launch.nodes import Spread
from tinylib.rundir import Process, RunDirectory, plain
from tinylib.shards import Shards, build
from tinylib.tokenizer import Tokenizer


@pytest.fixture
def call(capsys):
    def run(*arguments):
        """Exit code, the object on the last line, the text above it, and what went to stderr."""
        try:
            code = cli.main(list(arguments))
        except SystemExit as leaving:
            code = leaving.code
        out, err = capsys.readouterr()
        lines = out.splitlines()
        result = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
        return code, result, "\n".join(lines[:-1]), err
    return run


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    texts = [f"Number {n} has the square {n * n}, and after it comes {n + 1}." for n in range(200)]
    build({"train": texts[:180], "val": texts[180:]}, Tokenizer.train(texts, 300), folder / "shards")
    return folder / "shards"


SMALL = ["--model", "nano", "--depth", "1", "--seq-len", "32", "--vocab-size", "300", "--steps", "3",
         "--total-batch-size", "1.28e2", "--device-batch-size", "2", "--compile", "off", "--device", "cpu"]


def test_size_of_every_preset(call):
    for name, config in PRESETS.items():
        code, result, table, _ = call("size", "--model", name)
        assert code == 0 and f"{result['total']:,}" in table
        assert result["total"] == 12 * config.depth * config.dim**2 + 2 * config.vocab_size * config.dim
    assert call("size", "--model", "goldilocks", "--tied")[1]["total"] == 25_165_824


def test_flags_change_the_preset(call):
    config = call("size", "--model", "micro", "--depth", "6", "--vocab-size", "8_192", "--softcap", "None")[1]["config"]
    assert (config["depth"], config["dim"], config["vocab_size"], config["softcap"]) == (6, 128, 8_192, None)


def test_search_and_plan(call):
    code, result, table, _ = call("search", "--total", "38e6", "--head-dim", "64")
    assert code == 0 and result["candidates"][0]["preset"] == "goldilocks" and "goldilocks" in table
    assert [(row["depth"], row["dim"]) for row in result["missed"]] == [(16, 256), (64, 128), (28, 192), (63, 128)]
    for text in (*result["findings"], *(row["trades"] for row in result["candidates"])):
        assert text in table
    assert f"none beats {result['pareto']} of {result['found']} in" in table and "practical depth" in table
    code, result, table, _ = call("search", "--vocab-sizes", "24576", "--max-dim", "600", "--tied", "--total", "25.2e6")
    assert code == 0 and {row["vocab_size"] for row in result["candidates"]} == {24_576} and "exact halves" in table
    code, result, _, _ = call("plan", "--model", "nanochat-d32", "--device-batch-size", "8", "--nproc-per-node", "8")
    assert code == 0 and result["steps"] == 71_680 and result["elsewhere"]["RTX 4090"]["micro-batch"] == "does not fit"


def test_the_command_of_a_plan_trains_what_was_planned():
    for config in (PRESETS["nano"], replace(PRESETS["goldilocks"], depth=6, tied=True, softcap=None, seq_len=1024)):
        for nodes, recompute in ((1, False), (2, True)):
            plan = sizing.plan(config, nproc_per_node=2, nnodes=nodes, recompute=recompute)
            launcher, flags = train_command(plan).split(" -m tinylib train ")
            trained = train_config(flags.split())
            assert trained.model == config and trained.recompute == recompute and trained.steps == plan.steps
            assert trained.device_batch_size == plan.device_batch_size and "--nproc-per-node=2" in launcher
            assert ("--standalone" in launcher) == (nodes == 1) and ("--nnodes=2" in launcher) == (nodes == 2)


def test_a_model_may_come_from_a_file(call, tmp_path):
    design = replace(PRESETS["nano"], depth=7)
    (tmp_path / "design.json").write_text(to_json(design))
    code, result, _, _ = call("size", "--model", str(tmp_path / "design.json"), "--tied")
    assert code == 0 and result["config"] == vars(replace(design, tied=True))


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["size", "--dim", "500"], 1, "error: GPTConfig: dim=500 is not a multiple of head_dim=64: use dim=448 or 512"),
    (["size", "--model", "huge"], 1, "error: model='huge' is neither a preset nor a file: use one of goldilocks"),
    (["size", "--depth", "1.5"], 2, "1.5 is not a whole number"),
    (["size", "--colour", "red"], 2, "--colour"),
    (["train", *SMALL, "--total-batch-size", "100"], 1, "total_batch_size=100 is not a multiple"),
    (["train", *SMALL, "--data", "nowhere", "--run", "RUN"], 1, "error: no token shards in nowhere"),
    (["train", "--config", "missing.json"], 1, "missing.json"),
    (["eval", "nothing"], 1, "error: path='nothing' is no run directory"),
    (["tokenize"], 1, "use tokenize train, tokenize shards, tokenize eval"),
    (["runs", "kill"], 1, "'kill' is not a part of this verb: use runs show, runs stop, runs rm"),
    (["runs", "show", "nothing"], 1, "error: path='nothing' is no run directory"),
    (["search", "--total", "5"], 1, "total=5"),
    (["search", "--head-dim", "7", "--tolerance", "2"], 1, "use 6 or 8; tolerance=2.0 is not a number from 0 to 1"),
    (["dance"], 2, "verb='dance' is not known: use one of size"),
])
def test_what_cannot_be_done_is_said_in_one_line(call, tmp_path, arguments, code, message):
    found, result, _, err = call(*[str(tmp_path / "run") if word == "RUN" else word for word in arguments])
    assert (found, result) == (code, None)
    assert message in err and "Traceback" not in err
    if code == 1:
        assert len(err.splitlines()) == 1


def test_a_programmers_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(cli.VERBS, "size", lambda arguments: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["size"])


def test_train_eval_sample_runs(call, shards, tmp_path):
    run = tmp_path / "runs" / "one"
    code, result, _, _ = call("train", *SMALL, "--data", str(shards), "--run", str(run))
    assert code == 0 and result["state"] == "finished" and result["tokens"] == 3 * 128
    code, again, _, err = call("train", *SMALL, "--data", str(shards), "--run", str(run))
    assert code == 1 and again is None and "already holds a run" in err
    code, found, _, _ = call("eval", str(run))
    assert code == 0 and found["bits_per_byte"] == pytest.approx(result["val_bpb"], abs=1e-6)
    code, written, text, _ = call("sample", str(run), "--prompt", "Number", "--max-tokens", "5")
    assert code == 0 and text == "Number" + written["text"]
    code, exported, _, _ = call("export", str(run), str(tmp_path / "exported"))
    assert code == 0 and (tmp_path / "exported" / "config.json").is_file(), exported
    code, listed, table, _ = call("runs", "--folder", str(tmp_path / "runs"))
    assert code == 0 and [row["state"] for row in listed["runs"]] == ["finished"] and "one" in table


def test_runs_are_shown_stopped_and_removed(call, tiny, tmp_path):
    directory = RunDirectory(tmp_path / "one")
    with subprocess.Popen(["sleep", "600"]) as agent:
        directory.create({"train": plain(tiny), "world_size": 1, "launch": Spread(1, max_restarts=1).facts()})
        directory.write_pid("agent", Process.of(agent.pid))
        directory.write_status("running", step=1, steps=tiny.steps)
        directory.append_metrics({"kind": "step", "step": 1, "loss": 2.5, "grad_norm": 0.5, "mfu": None})
        directory.log_file(0).write_text("first\nlast words\n")
        code, shown, table, _ = call("runs", "show", str(directory.path), "--lines", "1")
        assert code == 0 and shown["alive"] == {"agent": agent.pid} and shown["failure"] is None
        assert (shown["state"], shown["step"], shown["steps"], shown["loss"]) == ("running", 1, tiny.steps, 2.5)
        assert "depth 2, dim 32, vocabulary 320" in table and "last words" in table and "first" not in table
        code, _, _, err = call("runs", "rm", str(directory.path))
        assert code == 1 and "still runs" in err and directory.exists()
        code, stopped, _, _ = call("runs", "stop", str(directory.path))
        assert code == 0 and stopped["state"] == "stopped" and agent.wait(10) == -signal.SIGKILL
    directory.write_error(0, "Traceback …\nOSError: [Errno 28] No space left on device\n")
    code, shown, table, _ = call("runs", "show", str(directory.path))
    assert code == 0 and "No space left" in table and "free some space and resume" in shown["failure"].splitlines()[-1]
    code, _, _, _ = call("runs", "rm", str(directory.path))
    assert code == 0 and not directory.path.exists()


def test_train_writes_a_batch_file(call, shards, tmp_path):
    target = ["--data", str(shards), "--run", str(tmp_path / "run"), "--slurm", str(tmp_path / "job")]
    code, result, table, _ = call("train", *SMALL, *target, "--nnodes", "2", "--nproc-per-node", "1")
    assert code == 0 and (tmp_path / "job").read_text().strip() in table and result["submit"].startswith("sbatch")
    assert train_config(["--config", str(tmp_path / "run" / "config.json")]).steps == 3
    code, _, _, err = call("train", *SMALL, *target, "--nproc-per-node", "many")
    assert code == 1 and "nproc_per_node='many' is not a whole number" in err
    code, _, _, err = call("train", *SMALL, "--nnodes", "2")
    assert code == 1 and "go with --slurm FILE" in err


def test_train_takes_a_whole_run_from_a_file(call, shards, tmp_path):
    config = train_config([*SMALL, "--data", str(shards), "--run", str(tmp_path / "run")])
    assert config.total_batch_size == 128 and config.model.depth == 1
    for text in (to_json(config), json.dumps({"train": json.loads(to_json(config)), "world_size": 1})):
        (tmp_path / "config.json").write_text(text)
        assert train_config(["--config", str(tmp_path / "config.json")]) == config
    with pytest.raises(ValueError, match="takes no other flag"):
        train_config(["--config", str(tmp_path / "config.json"), "--steps", "9"])


def test_every_field_is_a_flag():
    changed = train_config(["--model", "nano", "--steps", "2e1", "--eval-every", "None", "--tied", "--grad-clip",
                                 "0.5", "--adam-betas", "0.9", "0.99"])
    assert (changed.steps, changed.eval_every, changed.model.tied) == (20, None, True)
    assert (changed.grad_clip, changed.adam_betas) == (0.5, (0.9, 0.99))
    assert train_config([]) == TrainConfig()


def test_corpus_and_tokenizer(call, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"Line {n} says {n * n}.\n" for n in range(300)))
    tokenizer = str(tmp_path / "tokenizer")
    code, result, table, _ = call("corpus", "fetch", str(text))
    assert code == 0 and result["splits"]["train"]["characters"] > 0 and result["sha256"] in table
    assert result["split"] == "by hash of the text, 4% validation" in table and result["licence"] == "not stated"
    code, result, _, _ = call("tokenize", "train", "--corpus", str(text), "--vocab-size", "3e2", "--max-chars", "1e6",
                              "--tokenizer", tokenizer)
    assert code == 0 and result["vocab_size"] == 300
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"body": f"Line {n} says {n * n}."}) + "\n" for n in range(300)))
    assert call("tokenize", "train", "--corpus", str(lines), "--column", "body", "--vocab-size", "280", "--tokenizer",
                str(tmp_path / "other"))[1]["vocab_size"] == 280
    lines_of = ("--corpus", str(lines), "--column", "body", "--tokenizer", tokenizer)
    code, result, table, _ = call("tokenize", "shards", *lines_of,
                                  "--shards", str(tmp_path / "shards"), "--processes", "1", "--fresh")
    assert code == 0 and result["train_tokens"] == Shards(tmp_path / "shards").tokens and "val_documents" in table
    assert result["train_documents"] + result["val_documents"] == 300
    code, result, table, err = call("tokenize", "eval", *lines_of)
    assert code == 0 and err == "" and "cheapest vocabulary" in table and result["note"] in table
    assert result["documents"] > 0 and {row["kind"] for row in result["kinds"]} >= {"English", "numbers"}
    assert result["decision"]["low"] <= result["decision"]["high"]
    code, _, _, err = call("tokenize", "train", "--corpus", str(text), "--vocab-size", "60_000")
    assert code == 1 and "vocab_size=60000 is more than this text can fill" in err


def test_doctor_lists_what_is_there(call):
    code, result, table, _ = call("doctor")
    assert code == int(not result["ok"]) and "torch" in table
    assert {"python", "torch", "device", "disk", "kernel"} <= {check["name"] for check in result["checks"]}


def test_the_overview_needs_no_torch_and_is_fast():
    code = ("import runpy, sys\nsys.modules['torch'] = None\nsys.argv = ['tinylib']\n"
            "runpy.run_module('tinylib', run_name='__main__')")
    began = time.monotonic()
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert child.returncode == 0 and child.stderr == ""
    assert all(verb in child.stdout for verb in cli.VERBS)
    assert time.monotonic() - began < 5


def test_help_of_every_verb(call, capsys):
    for verb in cli.VERBS:
        if verb not in ("corpus", "tokenize"):
            code, _, text, _ = call(verb, "--help")
            assert code == 0 and f"python -m tinylib {verb}" in text
