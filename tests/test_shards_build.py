"""Building shards: the same files with any number of processes and after any kill, and no process left."""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tinylib.checks import UserError
from tinylib.shards import build, building, parts
from tinylib.tokenizer import Tokenizer

WORDS = ["the", "größe", "sat", "on", "a", "mat", "and", "ran", "to", "see", "what", "dogs", "say", "it", "<|bos|>"]


def sentences(count, seed=0):
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(0, 40))) for _ in range(count)]


DOCUMENTS = {"train": sentences(90), "val": sentences(20, seed=1)}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(sentences(200), vocab_size=300)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Some fifteen parts, all but the first encoded by workers if there are several."""
    monkeypatch.setattr(building, "PART_CHARACTERS", 700)
    monkeypatch.setattr(parts, "SMALL_CHARACTERS", 700)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def expected(tokenizer, tmp_path_factory):
    """The files of an uninterrupted build in one part and one process."""
    folder = tmp_path_factory.mktemp("expected") / "s"
    build(DOCUMENTS, tokenizer, folder, tokens_per_file=1000, processes=1)
    return contents(folder)


def rebuild(tokenizer, folder, **options):
    return build(DOCUMENTS, tokenizer, folder, **{"tokens_per_file": 1000, "processes": 1} | options)


def live_workers():
    """The workers that this process started; the resource trackers are none, and end with it."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "LokyProcess" in " ".join(child.cmdline()):
                yield child


@pytest.fixture
def interrupted(tokenizer, tmp_path):
    """The finished parts of a build of `s` that was interrupted after about two thirds."""
    def texts():
        yield from DOCUMENTS["train"][:60]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build({"train": texts()}, tokenizer, tmp_path / "s", processes=1)
    assert [file.name for file in tmp_path.iterdir()] == [".s.part"]
    return tmp_path / ".s.part"


@pytest.fixture
def encoded(monkeypatch):
    """The part files that this process writes from here on."""
    written, write_part = [], parts.write_part
    monkeypatch.setattr(parts, "write_part", lambda file, *given: written.append(file) or write_part(file, *given))
    return written


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_change_nothing(tokenizer, tmp_path, expected, processes):
    rebuild(tokenizer, tmp_path / "s", processes=processes).verify()
    assert contents(tmp_path / "s") == expected
    assert [file.name for file in tmp_path.iterdir()] == ["s"] and not [*live_workers()]


def test_a_small_corpus_starts_no_worker(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    code = """
import sys
from tinylib.shards import build
from tinylib.tokenizer import Tokenizer
print(build({"train": ["text"] * 1000}, Tokenizer.load(sys.argv[1]), sys.argv[2], processes=4).documents)
print("joblib" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t"), str(tmp_path / "s")], capture_output=True,
                          text=True, check=True)
    assert done.stdout == "1000\nFalse\n"


# Going on


def test_finished_parts_are_not_encoded_again(tokenizer, tmp_path, expected, interrupted, encoded):
    kept = {file.name for file in interrupted.glob("*.bin")}
    assert len(kept) > 5
    rebuild(tokenizer, tmp_path / "s")
    assert contents(tmp_path / "s") == expected and [file.name for file in tmp_path.iterdir()] == ["s"]
    assert encoded and not kept & {file.name for file in encoded}


def test_damaged_parts_are_encoded_again(tokenizer, tmp_path, expected, interrupted, encoded):
    """As a power cut may leave them: short, empty, full of zeros, changed."""
    damaged = sorted(interrupted.glob("*.bin"))[:5]
    data = damaged[0].read_bytes()
    changed = data[:-400] + b"??" + data[-398:]
    for file, left in zip(damaged, (data[:-1], b"", data[:7], bytes(len(data)), changed), strict=True):
        file.write_bytes(left)
    rebuild(tokenizer, tmp_path / "s")
    assert contents(tmp_path / "s") == expected and set(damaged) <= set(encoded)


@pytest.mark.parametrize("change", [
    {"tokenizer": Tokenizer.train(sentences(200, seed=9), vocab_size=300)}, {"tokens_per_file": 999},
    {"documents": {"train": ["another", *DOCUMENTS["train"]]}}, {"documents": {"train": DOCUMENTS["train"][:5]}},
    {"documents": {"val": DOCUMENTS["train"], "train": ["a"]}}])
def test_parts_of_another_build_change_nothing(tokenizer, tmp_path, interrupted, change):
    options = {"documents": DOCUMENTS, "tokenizer": tokenizer, "tokens_per_file": 1000, "processes": 1} | change
    build(**options, folder=tmp_path / "s")
    assert [file.name for file in tmp_path.iterdir()] == ["s"]
    build(**options, folder=tmp_path / "clean")
    assert contents(tmp_path / "s") == contents(tmp_path / "clean")


SCRIPT = """
import json, sys, time
from tinylib.shards import build, building, parts
from tinylib.tokenizer import Tokenizer
building.PART_CHARACTERS = parts.SMALL_CHARACTERS = 700
documents, tokenizer, folder = json.load(open(sys.argv[1])), Tokenizer.load(sys.argv[2]), sys.argv[3]
def slowly(texts):
    for text in texts:
        time.sleep(0.005)
        yield text
documents = {split: slowly(texts) for split, texts in documents.items()}
build(documents, tokenizer, folder, tokens_per_file=1000, processes=2)
print("built")
"""


@pytest.fixture
def command(tokenizer, tmp_path):
    """A build in a process of its own, by a script without a guard for its main module."""
    (tmp_path / "documents.json").write_text(json.dumps(DOCUMENTS))
    (tmp_path / "script.py").write_text(SCRIPT)
    tokenizer.save(tmp_path / "tokenizer")
    return [sys.executable, *(str(tmp_path / name) for name in ("script.py", "documents.json", "tokenizer", "s"))]


def begun(command, folder, finished):
    """The process of `command`, when so many parts are finished or it is done."""
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))    # a shell's & ignores it
    while process.poll() is None and len([*(folder / ".s.part").glob("*.bin")]) < finished:
        time.sleep(0.002)
    return process


def family(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_builds_go_on_and_leave_no_process(command, tmp_path, expected, kills):
    families, killed, chance = [], 0, random.Random(kills)
    for kill in range(kills):    # each in another part
        process = begun(command, tmp_path, finished=1 + kill * 14 // kills)
        time.sleep(chance.random() * 0.02)
        families += family(process)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    gone, alive = psutil.wait_procs(families, timeout=20)
    assert gone and not alive and killed > kills // 2
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert (done.stdout, done.stderr) == ("built\n", "")
    assert contents(tmp_path / "s") == expected and not (tmp_path / ".s.part").exists()


@pytest.mark.skipif(os.name != "posix", reason="process groups")
@pytest.mark.parametrize("finished", [1, 5])
def test_ctrl_c_leaves_finished_parts_alone(command, tmp_path, finished):
    """SIGINT for the whole group, as from a terminal: one traceback, and none of a worker, even of one that starts.

    The parent's own may be a chain, where the interrupt fell into a codec or an import.
    """
    process = begun(command, tmp_path, finished=finished)
    children = family(process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    chained = err.count("\nThe above exception was the direct") + err.count("\nDuring handling of the above exception")
    assert process.returncode == -signal.SIGINT and "finished parts are kept" in err
    assert err.count("Traceback (most recent call last)") - chained == 1, err
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert gone and not alive
    assert not (tmp_path / "s").exists() and not [*(tmp_path / ".s.part").glob("text/*")]


# What goes wrong


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_keeps_finished_parts(tokenizer, tmp_path, expected, monkeypatch, processes):
    """In this process when a part is written, and with workers when the text of one is."""
    write, written = Path.write_bytes, []

    def until_full(file, data):
        if ".s.part" in file.parts:
            if len(written) == 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(file)
        return write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", until_full)
        with pytest.raises(OSError, match="no space left on the disk: free some") as raised:
            rebuild(tokenizer, tmp_path / "s", processes=processes)
    assert raised.value.errno == errno.ENOSPC and not [*live_workers()]
    assert raised.value.__notes__[0].startswith("5 finished parts are kept in")
    assert [file.name for file in tmp_path.iterdir()] == [".s.part"]
    rebuild(tokenizer, tmp_path / "s")
    assert contents(tmp_path / "s") == expected


def test_a_full_disk_at_first_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parts, "write_part", full)
    with pytest.raises(OSError, match="no space left on the disk"):
        build({"train": ["a"]}, tokenizer, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_one_build_at_a_time(tokenizer, tmp_path):
    def texts():
        yield from DOCUMENTS["train"]
        with pytest.raises(BlockingIOError, match="another process builds these shards: wait for it, or stop it"):
            build({"train": ["other"]}, tokenizer, tmp_path / "s")

    assert build({"train": texts()}, tokenizer, tmp_path / "s", processes=1).documents == 90


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_worker_that_is_killed_is_one_error(tokenizer, tmp_path, expected):
    def texts():
        for text in DOCUMENTS["train"]:
            yield text
            for worker in live_workers():
                worker.kill()

    with pytest.raises(UserError, match="a process that encodes text was killed: if memory ran out, use fewer"):
        build(DOCUMENTS | {"train": texts()}, tokenizer, tmp_path / "s", tokens_per_file=1000, processes=2)
    assert not [*live_workers()] and not (tmp_path / "s").exists()
    rebuild(tokenizer, tmp_path / "s", processes=2)
    assert contents(tmp_path / "s") == expected


def test_an_error_in_a_worker_is_raised_here(tokenizer, tmp_path):
    with parts.Encoder(tokenizer, tmp_path / "nothing", np.dtype("uint16"), tmp_path, processes=2) as encoder:
        _, task = encoder.begin(DOCUMENTS["train"])
        with pytest.raises(FileNotFoundError, match="no tokenizer in"):
            task.result(timeout=60)
    assert not [*live_workers()] and list(tmp_path.iterdir()) == []


def test_a_lone_surrogate_is_named(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud83d' at character 1"):
        build({"train": ["a", "b\ud83d"]}, tokenizer, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_text_is_read_no_further_than_work_goes_on(tokenizer, tmp_path):
    """The disk holds the text of a few parts for each process, whatever the size of the corpus, and memory of one."""
    spooled = []

    def texts():
        for text in sentences(400):
            spooled.append(len([*(tmp_path / ".s.part" / "text").glob("*")]))
            yield text

    build({"train": texts()}, tokenizer, tmp_path / "s", processes=2)
    assert len(spooled) == 400 and 0 < max(spooled) <= 2 * 2 + 1


def test_documents_that_repeat_are_all_kept(tokenizer, tmp_path):
    """Equal parts have one file, which two workers may write at once."""
    texts = DOCUMENTS["train"][:1] * 400
    shard = build({"train": texts}, tokenizer, tmp_path / "s", processes=3)
    ids = [tokenizer.bos, *tokenizer.encode(texts[0])] * 400
    assert np.fromfile(tmp_path / "s" / "train_000.bin", dtype="uint16").tolist() == ids and shard.documents == 400


@pytest.mark.parametrize("argument", [{"processes": 0}, {"tokens_per_file": 0}, {"tokens_per_file": 2.5}])
def test_bad_arguments(tokenizer, tmp_path, argument):
    name, value = next(iter(argument.items()))
    with pytest.raises(ValueError, match=f"{name}={value} is not a whole number of at least 1: use"):
        build(DOCUMENTS, tokenizer, tmp_path / "s", **argument)
    with pytest.raises(ValueError, match="documents has no split"):
        build({}, tokenizer, tmp_path / "s")
