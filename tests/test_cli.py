"""The command line: tables for people, --json for programs, one line and an exit code for a failure."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import tyro

from tinylib import sizing
from tinylib.cli import design, main, verbs
from tinylib.config import PRESETS, TrainConfig, to_json
from tinylib.course.samples import kinds
from tinylib.rundir import Process, RunDirectory, Step
from tinylib.shards import Shards, build
from tinylib.tokenizer import Tokenizer

VERBS = ["size", "search", "plan", "corpus fetch", "tokenize train", "tokenize shards", "tokenize eval", "train",
         "eval", "sample", "tie", "export", "experiment", "runs list", "runs show", "runs stop", "runs rm", "course",
         "doctor"]
SMALL = ["--model", "nano", "--depth", "1", "--seq-len", "32", "--vocab-size", "300", "--steps", "3",
         "--total-batch-size", "1.28e2", "--device-batch-size", "2", "--compile", "off", "--device", "cpu"]


@pytest.fixture
def call(capsys):
    def run(*arguments):
        """Exit code, stdout and stderr of a command."""
        code = main(list(arguments))
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def facts(call):
    def run(*arguments):
        """The object that a successful command prints with --json; it is all of stdout."""
        code, out, err = call(*arguments, "--json")
        assert code == 0, err
        return json.loads(out, parse_constant=pytest.fail)    # NaN is Python's, not JSON's
    return run


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    texts = [f"Number {n} has the square {n * n}, and after it comes {n + 1}." for n in range(200)]
    build({"train": texts[:180], "val": texts[180:]}, Tokenizer.train(texts, 300), folder / "shards")
    return folder / "shards"


def config_of(*arguments):
    """The TrainConfig that the flags of `train` make."""
    return tyro.cli(verbs.Flags[TrainConfig], args=list(arguments), config=verbs.CONFIG,
                    registry=verbs.registry(arguments))


def test_size_of_every_preset(call, facts):
    for name, config in PRESETS.items():
        found = facts("size", "--model", name)
        assert found["total"] == 12 * config.depth * config.dim**2 + 2 * config.vocab_size * config.dim
        code, out, _ = call("size", "--model", name)
        assert code == 0 and f"{found['total']:,}" in out and max(map(len, out.splitlines())) <= 100
    assert facts("size", "--model", "goldilocks", "--tied")["total"] == 25_165_824
    assert all(text in call("size")[1] for text in ("37.7M", "201 MFLOP", "0.33 GB"))


def test_flags_change_the_preset(facts):
    config = facts("size", "--model", "micro", "--depth", "6", "--vocab-size", "8_192", "--softcap", "None")["config"]
    assert (config["depth"], config["dim"], config["vocab_size"], config["softcap"]) == (6, 128, 8_192, None)


def test_search(call, facts):
    ours, theirs = (inspect.signature(function).parameters for function in (design.search, sizing.search))
    assert {name: flag.default for name, flag in ours.items()} == {name: own.default for name, own in theirs.items()}
    request = ("search", "--total", "38e6", "--head-dim", "64")
    code, out, _ = call(*request)
    rows = out.split("\n\n")[0].splitlines()[1:]
    assert code == 0 and len(rows) == 12 and "goldilocks" in rows[0] and "37.7M" in rows[0] and "201 MFLOP" in rows[0]
    found = facts(*request)
    assert found["candidates"][0]["preset"] == "goldilocks" and found["pareto"] < found["found"]
    assert [(row["depth"], row["dim"]) for row in found["missed"]] == [(16, 256), (64, 128), (28, 192), (63, 128)]
    found = facts("search", "--vocab-sizes", "24576", "--max-dim", "600", "--tied", "--total", "25.2e6")
    assert {row["vocab_size"] for row in found["candidates"]} == {24_576}


def test_plan(call, facts):
    request = ("plan", "--model", "nanochat-d32", "--device-batch-size", "8", "--nproc-per-node", "8")
    found = facts(*request)
    assert found["steps"] == 71_680 and found["elsewhere"]["RTX 4090"]["micro-batch"] == "does not fit"
    code, out, _ = call(*request)
    lines = [line for line in out.splitlines() if line != found["command"]]    # a command is one line, to be copied
    assert code == 0 and len(lines) + 1 == len(out.splitlines()) and max(map(len, lines)) <= 100


def test_the_command_of_a_plan_trains_what_was_planned():
    for config in (PRESETS["nano"], replace(PRESETS["goldilocks"], depth=6, tied=True, softcap=None, seq_len=1024)):
        for nodes, recompute in ((1, False), (2, True)):
            plan = sizing.plan(config, nproc_per_node=2, nnodes=nodes, recompute=recompute)
            launcher, flags = design.train_command(plan).split(" -m tinylib train ")
            trained = config_of(*flags.split())
            assert trained.model == config and trained.recompute == recompute and trained.steps == plan.steps
            assert trained.device_batch_size == plan.device_batch_size and "--nproc-per-node=2" in launcher
            assert ("--standalone" in launcher) == (nodes == 1) and ("--nnodes=2" in launcher) == (nodes == 2)


def test_a_model_may_come_from_a_file(call, facts, tmp_path):
    design = replace(PRESETS["nano"], depth=7)
    (tmp_path / "design.json").write_text(to_json(design))
    found = facts("size", "--model", str(tmp_path / "design.json"), "--tied")
    assert found["config"] == asdict(replace(design, tied=True))
    for text, problem in (("{", "is not JSON"), ("[]", "holds no JSON object"), ('{"width": 3}', "is not a field")):
        (tmp_path / "design.json").write_text(text)
        code, out, err = call("size", "--model", str(tmp_path / "design.json"))
        assert (code, out) == (1, "") and problem in err


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["size", "--dim", "500"], 1, "error: GPTConfig: dim=500 is not a multiple of head_dim=64: use dim=448 or 512"),
    (["size", "--dim", "0", "--head-dim", "7"], 1, "dim=0 is not a whole number of at least 1"),
    (["size", "--model", "huge"], 1, "error: model='huge' is neither a preset nor a file: use one of goldilocks"),
    (["size", "--depth", "1.5"], 2, "1.5 is not a whole number"),
    (["size", "--colour", "red"], 2, "--colour"),
    (["train", "--dim", "500"], 1, "error: GPTConfig: dim=500"),
    (["train", *SMALL, "--total-batch-size", "100", "--steps", "0"], 1, "steps=0 is not a whole number"),
    (["train", *SMALL, "--total-batch-size", "100"], 1, "total_batch_size=100 is not a multiple"),
    (["train", *SMALL, "--data", "nowhere", "--run-dir", "RUN"], 1, "error: no token shards in /"),
    (["train", "--config", "missing.json"], 1, "missing.json"),
    (["train", *SMALL, "--nnodes", "2"], 1, "go with --slurm FILE"),
    (["plan", "--depth", "0"], 1, "error: GPTConfig: depth=0"),
    (["plan", "--mfu", "2", "--device", "abacus"], 1, "device='abacus' is not a choice"),
    (["eval", "nothing"], 1, "error: run='nothing' is neither a run directory nor the name of a run"),
    (["sample", "nothing"], 1, "error: run='nothing' is neither"),
    (["tokenize"], 2, "train, shards, conversations, eval"),
    (["runs", "kill"], 2, "kill"),
    (["runs", "show", "nothing"], 1, "error: run='nothing' is neither"),
    (["search", "--total", "5"], 1, "total=5"),
    (["search", "--head-dim", "7", "--tolerance", "2"], 1, "use 6 or 8; tolerance=2.0 is not a number from 0 to 1"),
    (["dance"], 2, "size"),
])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_mistake_is_reported_in_one_line(call, tmp_path, arguments, code, message, as_json):
    words = [str(tmp_path / "run") if word == "RUN" else word for word in arguments] + ["--json"] * as_json
    found, out, err = call(*words)
    assert (found, out) == (code, "") and message in err and "Traceback" not in err
    if code == 1:
        assert len(err.splitlines()) == 1


def test_one_rank_alone_reports_a_wrong_configuration(call, monkeypatch):
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        code, out, err = call("train", "--dim", "500")
        assert (code, out, len(err.splitlines())) == (1, "", lines)


def test_an_error_that_is_not_the_users_keeps_its_traceback(monkeypatch):
    for error in (KeyError("missing"), ValueError("a library's"), RuntimeError("a library's")):
        def fail(*arguments, error=error):
            raise error
        monkeypatch.setattr(sizing, "sheet", fail)
        with pytest.raises(type(error)):
            main(["size"])


def test_train_eval_sample_export_runs(call, facts, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    run = tmp_path / "runs" / "mine" / "one"
    code, out, err = call("train", *SMALL, "--data", str(shards), "--run-dir", str(run))
    assert code == 0 and "finished" in out and "loss" in err and "{" not in out
    code, out, err = call("train", *SMALL, "--data", str(shards), "--run-dir", str(run), "--json")
    assert (code, out) == (1, "") and "already holds a run" in err
    summary = RunDirectory(run).summary()
    for name in (str(run), "one", "mine/one"):
        assert facts("eval", name)["bits_per_byte"] == pytest.approx(summary.val_bpb, abs=1e-6)
    assert f"{summary.val_bpb:.3f}" in call("eval", "one", "--device", "cpu")[1]
    written = facts("sample", "one", "--prompt", "Number", "--max-tokens", "5")
    code, out, _ = call("sample", "one", "--prompt", "Number", "--max-tokens", "5")
    assert code == 0 and out == "Number" + written["text"] + "\n"
    assert call("export", "one", str(tmp_path / "exported"))[0] == 0
    assert (tmp_path / "exported" / "config.json").is_file()
    listed = facts("runs")["runs"]
    assert [(row["run"], row["state"], row["step"]) for row in listed] == [("mine/one", "finished", 3)]
    assert listed[0]["val_bpb"] == pytest.approx(summary.val_bpb)
    code, out, _ = call("runs", "--folder", str(tmp_path / "runs"))
    assert code == 0 and "mine/one" in out and "finished" in out and f"{summary.val_bpb:.3f}" in out
    assert facts("train", *SMALL, "--data", str(shards), "--run-dir", str(run / "two"))["tokens"] == 3 * 128


def test_shards_of_another_tokenizer_of_the_same_size_are_not_evaluated(call, tmp_path):
    """Their bits per byte would be those of other text."""
    texts = [f"Number {n} has the square {n * n}, and after it comes {n + 1}." for n in range(200)]
    for vocabulary in ("the square of a number " * 99, "and after it comes another " * 99):
        build({"train": texts[:180], "val": texts[180:]}, Tokenizer.train([vocabulary], 280), tmp_path / "shards")
        if not (tmp_path / "run").exists():
            assert call("train", *SMALL, "--data", str(tmp_path / "shards"), "--run-dir", str(tmp_path / "run"))[0] == 0
    code, out, err = call("eval", str(tmp_path / "run"))
    assert (code, out) == (1, "") and "tokenizer" in err


def test_runs_are_shown_stopped_and_removed(call, facts, tiny, tmp_path):
    directory = RunDirectory(tmp_path / "one")
    with subprocess.Popen(["sleep", "600"]) as agent:
        directory.write_config(tiny, world_size=1)
        directory.write_pid("agent", Process.of(agent.pid))
        directory.write_status("running", step=1, steps=tiny.steps)
        directory.append(Step(1, 2.5, 1.0, grad_norm=0.5, dt_s=0.1, data_s=0.0, tokens=256, tokens_per_s=2560.0,
                              mfu=None))
        directory.log_file(0).write_text("first\nlast words\n")
        shown = facts("runs", "show", str(directory.path), "--lines", "1")
        assert shown["alive"] == {"agent": agent.pid} and shown["failure"] is None
        assert (shown["state"], shown["step"], shown["steps"], shown["loss"]) == ("running", 1, tiny.steps, 2.5)
        _, out, _ = call("runs", "show", str(directory.path), "--lines", "1")
        assert "depth 2, dim 32" in out and "last words" in out and "first" not in out and "mfu" not in out
        code, _, err = call("runs", "rm", str(directory.path))
        assert code == 1 and "still runs" in err and directory.exists()
        assert facts("runs", "stop", str(directory.path))["state"] == "stopped" and agent.wait(10) == -signal.SIGKILL
    directory.write_error(0, "Traceback …\nOSError: [Errno 28] No space left on device\n")
    code, out, _ = call("runs", "show", str(directory.path))
    assert code == 0 and "No space left" in out and "free some space and resume" in out.splitlines()[-1]
    code, _, _ = call("runs", "rm", str(directory.path))
    assert code == 0 and not directory.path.exists()


def test_train_writes_a_batch_file(call, facts, shards, tmp_path):
    target = ["--data", str(shards), "--run-dir", str(tmp_path / "run"), "--slurm", str(tmp_path / "job")]
    code, out, _ = call("train", *SMALL, *target, "--nnodes", "2", "--nproc-per-node", "1")
    assert code == 0 and (tmp_path / "job").read_text().strip() in out and f"sbatch {tmp_path / 'job'}" in out
    assert config_of("--config", str(tmp_path / "run" / "config.json")).steps == 3
    code, _, err = call("train", *SMALL, *target, "--nproc-per-node", "many")
    assert code == 2 and "many" in err


def test_train_begins_from_a_file(call, shards, tmp_path):
    config = config_of(*SMALL, "--data", str(shards), "--run-dir", str(tmp_path / "run"))
    assert config.total_batch_size == 128 and config.model.depth == 1
    for text in (to_json(config), json.dumps({"train": json.loads(to_json(config)), "world_size": 1})):
        (tmp_path / "mine.json").write_text(text)
        file = ("--config", str(tmp_path / "mine.json"))
        assert config_of(*file) == config and config_of(*file, "--steps", "9") == replace(config, steps=9)
        assert config_of(*file, "--depth", "2").model == replace(config.model, depth=2)
        assert config_of(*file, "--model", "nano", "--total-batch-size", "4096").model == PRESETS["nano"]


def test_every_field_is_a_flag():
    changed = config_of("--model", "nano", "--steps", "2e1", "--eval-every", "None", "--tied", "--grad-clip", "0.5",
                        "--adam-betas", "0.9", "0.99")
    assert (changed.steps, changed.eval_every, changed.model.tied) == (20, None, True)
    assert (changed.grad_clip, changed.adam_betas) == (0.5, (0.9, 0.99))
    assert config_of() == TrainConfig()


def test_corpus_and_tokenizer(call, facts, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"Line {n} says {n * n}.\n" for n in range(300)))
    tokenizer = str(tmp_path / "tokenizer")
    manifest = facts("corpus", "fetch", str(text))
    code, out, _ = call("corpus", "fetch", str(text))
    assert code == 0 and manifest["sha256"] in out and manifest["split"] in out and manifest["licence"] in out
    assert manifest["splits"]["train"]["characters"] > 0 and f"{manifest['splits']['train']['documents']:,}" in out
    trained = facts("tokenize", "train", "--corpus", str(text), "--vocab-size", "3e2", "--max-chars", "1e6",
                    "--tokenizer", tokenizer)
    assert trained["vocab_size"] == 300 and Tokenizer.load(tokenizer).fingerprint == trained["fingerprint"]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"body": f"Line {n} says {n * n}."}) + "\n" for n in range(300)))
    other = facts("tokenize", "train", "--corpus", str(lines), "--column", "body", "--vocab-size", "280", "--tokenizer",
                  str(tmp_path / "other"))
    assert other["vocab_size"] == 280
    lines_of = ("--corpus", str(lines), "--column", "body", "--tokenizer", tokenizer)
    built = facts("tokenize", "shards", *lines_of, "--shards", str(tmp_path / "shards"), "--processes", "1")
    assert built["train_tokens"] == Shards(tmp_path / "shards").tokens
    assert built["train_documents"] + built["val_documents"] == 300
    found = facts("tokenize", "eval", *lines_of)
    code, out, err = call("tokenize", "eval", *lines_of)
    assert code == 0 and err == "" and found["note"] in out and found["documents"] > 0
    assert {row["kind"] for row in found["kinds"]} >= set(kinds())
    assert found["decision"]["low"] <= found["decision"]["high"]
    code, _, err = call("tokenize", "train", "--corpus", str(text), "--vocab-size", "60_000")
    assert code == 1 and "vocab_size=60000 is more than this text can fill" in err


def test_doctor_lists_what_is_there(call):
    code, out, _ = call("doctor")
    assert "torch" in out
    again, out, _ = call("doctor", "--json")
    found = json.loads(out)
    assert code == again == int(not found["ok"])
    assert {"python", "torch", "device", "disk", "kernel"} <= {check["name"] for check in found["checks"]}


def test_quick_verbs_need_no_torch():
    code = """
import sys
from tinylib.cli import main
for words in (["--help"], ["size"], ["search"], ["plan"], ["train", "--help"], ["runs"]):
    assert main(words) == 0 and "torch" not in sys.modules, words
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stderr) == (0, "") and child.stdout


def test_threads_spin_briefly_while_they_wait(tmp_path):
    """OpenMP reads its variables when torch loads; a setting of the user's is kept."""
    code = """
import os, sys, types
from tinylib.cli import main
sys.modules["tinylib.train"] = trainer = types.ModuleType("tinylib.train")
trainer.train = lambda *args, **options: print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT")) or sys.exit()
main(sys.argv[1:])
"""
    free = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    for own, count in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)):
        done = subprocess.run([sys.executable, "-c", code, "train", "--run-dir", str(tmp_path / "run")], env=free | own,
                              capture_output=True, text=True)
        assert done.stdout == f"False {count}\n", done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(call, verb):
    code, out, _ = call(*verb.split(), "--help")
    assert code == 0 and f"usage: tinylib {verb}" in out and "--json" in out
    assert verb.split()[0] in call("--help")[1]


def test_no_flag_is_a_prefix_of_one_of_torchruns(call):
    """torchrun reads the flags of the script too, and takes a prefix for its own flag."""
    from torch.distributed.run import get_args_parser

    theirs = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    ours = set(re.findall(r"--[a-z][a-z-]*", call("train", "--help")[1])) - theirs
    assert {"--run-dir", "--no-tied", "--json"} <= ours
    assert [(flag, other) for flag in ours for other in theirs if other.startswith(flag)] == []
