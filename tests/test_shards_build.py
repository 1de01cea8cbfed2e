"""Building shards: the same files with any number of processes and after any kill; leftovers of others are refused."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from tinylib.shards import Shards, build, building, journal, workers
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
    """Some ten parts, all but the first encoded in processes if there are several."""
    monkeypatch.setattr(building, "PART_CHARACTERS", 700)
    monkeypatch.setattr(building, "SMALL_CHARACTERS", 700)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def expected(tokenizer, tmp_path_factory):
    """The files of an uninterrupted build in one part and one process."""
    folder = tmp_path_factory.mktemp("expected") / "s"
    build(DOCUMENTS, tokenizer, folder, tokens_per_file=1000, processes=1)
    return contents(folder)


def failing(documents, after, error):
    """The documents, but for an error in the place of one of training."""
    def texts():
        yield from documents["train"][:after]
        raise error
    return documents | {"train": texts()}


@pytest.fixture
def interrupted(tokenizer, tmp_path):
    """Where a build of `s` was interrupted after about two thirds."""
    with pytest.raises(KeyboardInterrupt):
        build(failing(DOCUMENTS, 60, KeyboardInterrupt()), tokenizer, tmp_path / "s", tokens_per_file=1000, processes=1)
    assert [file.name for file in tmp_path.iterdir()] == [".s.part"]
    return tmp_path / ".s.part"


def go_on(tokenizer, folder, **options):
    return build(DOCUMENTS, tokenizer, folder, **{"tokens_per_file": 1000, "processes": 1} | options)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_change_nothing(tokenizer, tmp_path, expected, processes):
    go_on(tokenizer, tmp_path / "s", processes=processes).verify()
    assert contents(tmp_path / "s") == expected
    assert [file.name for file in tmp_path.iterdir()] == ["s"]
    assert not psutil.Process().children()


def test_an_interrupted_build_goes_on(tokenizer, tmp_path, expected, interrupted, monkeypatch):
    whole = len((interrupted / "parts.jsonl").read_text().splitlines()) - 1
    encoded = []
    monkeypatch.setattr(building, "encode", lambda *given: encoded.append(1) or workers.encode(*given))
    shard = go_on(tokenizer, tmp_path / "s")
    assert contents(tmp_path / "s") == expected and [file.name for file in tmp_path.iterdir()] == ["s"]
    assert whole > 5 and len(encoded) == sum(1 for _ in building._parts(DOCUMENTS, tokenizer)) - whole
    assert shard.documents == 90


def test_what_a_kill_may_leave_is_cut_off(tokenizer, tmp_path, expected, interrupted):
    """Journal and files end anywhere, with zeros that never reached the disk, or with tokens that were changed."""
    keep = shutil.copytree(interrupted, tmp_path / "keep")
    log, files = (keep / "parts.jsonl").read_bytes(), sorted((keep / "shards").glob("*.bin"))
    last = files[-1].read_bytes()
    chance = random.Random(0)
    damages = [("parts.jsonl", log[:cut]) for cut in (0, 5, *(chance.randrange(len(log)) for _ in range(8)))]
    damages += [("parts.jsonl", log[:-200] + bytes(200)), ("parts.jsonl", log + b'{"split": "tr')]
    damages += [(f"shards/{files[-1].name}", data) for data in (
        last + b"half a part", last[:-1], last[:7], b"", last[:-100] + bytes(100))]
    damages += [(f"shards/{files[0].name}", bytes(10)), ("shards/train_009.bin", b"early"), ("shards/index.json", b"{")]
    for name, data in damages:
        shutil.rmtree(interrupted, ignore_errors=True)
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        shutil.copytree(keep, interrupted)
        (interrupted / name).write_bytes(data)
        go_on(tokenizer, tmp_path / "s")
        assert contents(tmp_path / "s") == expected, (name, data[-50:])


SCRIPT = """
import json, sys, time
from tinylib.shards import build, building
from tinylib.tokenizer import Tokenizer
building.PART_CHARACTERS = building.SMALL_CHARACTERS = 700
documents, tokenizer, folder = json.load(open(sys.argv[1])), Tokenizer.load(sys.argv[2]), sys.argv[3]
def slowly(texts):
    for text in texts:
        time.sleep(0.005)
        yield text
documents = {split: slowly(texts) for split, texts in documents.items()}
build(documents, tokenizer, folder, tokens_per_file=1000, processes=2)
print("built")
"""


def killed_often(tokenizer, folder, kills):
    """Build in a process, without a guard for its main module, killing it `kills` times; returns what it printed."""
    (folder / "documents.json").write_text(json.dumps(DOCUMENTS))
    (folder / "script.py").write_text(SCRIPT)
    tokenizer.save(folder / "tokenizer")
    command = [sys.executable, str(folder / "script.py"), str(folder / "documents.json"), str(folder / "tokenizer"),
               str(folder / "s")]
    log, chance, families, killed = folder / ".s.part" / "parts.jsonl", random.Random(kills), [], 0
    for kill in range(kills):
        process = psutil.Popen(command, stdout=subprocess.DEVNULL)
        lines = 1 + kill * 10 // kills    # further each time, so that every kill is in another part
        while process.poll() is None and (not log.is_file() or log.read_bytes().count(b"\n") < lines):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.02)
        with contextlib.suppress(psutil.NoSuchProcess):    # a machine so slow that it was done by now
            families += process.children()
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    gone, alive = psutil.wait_procs(families, timeout=10)
    assert gone and not alive and killed > kills // 2
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_builds_go_on_and_leave_no_process(tokenizer, tmp_path, expected, kills):
    assert killed_often(tokenizer, tmp_path, kills) == "built\n"
    assert contents(tmp_path / "s") == expected
    assert not (tmp_path / ".s.part").exists()


def test_a_full_disk_keeps_what_is_whole(tokenizer, tmp_path, expected, monkeypatch):
    cut, written = journal.Journal._cut, []

    def full(self, record, tokens):
        for name, piece in cut(self, record, tokens):
            written.append(name)
            if len(written) > 9:    # each part is cut twice, to be written and to be counted
                yield name, piece[:10]
                raise OSError(errno.ENOSPC, "No space left on device")
            yield name, piece

    monkeypatch.setattr(journal.Journal, "_cut", full)
    with pytest.raises(OSError, match=r"no space left on the disk, \d whole parts .* are kept in .*: free some and"):
        go_on(tokenizer, tmp_path / "s")
    monkeypatch.setattr(journal.Journal, "_cut", cut)
    go_on(tokenizer, tmp_path / "s")
    assert contents(tmp_path / "s") == expected


def test_a_full_disk_at_first_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal.Journal, "append", full)
    with pytest.raises(OSError, match="no space left on the disk, nothing was kept: free some and run again"):
        build({"train": ["a"]}, tokenizer, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("change", "message"), [
    ({"tokenizer": Tokenizer.train(sentences(200, seed=9), vocab_size=300)}, "tokenizer was '.*' and is '"),
    ({"tokens_per_file": 999}, "tokens_per_file was 1000 and is 999"),
    ({"documents": DOCUMENTS | {"train": ["another", *DOCUMENTS["train"]]}}, "of other documents in split 'train'"),
    ({"documents": {"val": DOCUMENTS["train"], "train": ["a"]}}, "of other documents in split 'train'"),
    ({"documents": {"train": DOCUMENTS["train"][:5]}}, "of other documents in split 'train'"),
])
def test_leftovers_of_another_build_are_refused(tokenizer, tmp_path, interrupted, expected, change, message):
    before = contents(interrupted)
    options = {"documents": DOCUMENTS, "tokenizer": tokenizer, "tokens_per_file": 1000, "processes": 1} | change
    with pytest.raises(ValueError, match=rf"\.s\.part holds the start of another build, .*{message}.*fresh=True"):
        build(**options, folder=tmp_path / "s")
    assert contents(interrupted) == before, "a mistaken call costs nothing"
    build(**options, folder=tmp_path / "s", fresh=True)
    assert [file.name for file in tmp_path.iterdir()] == ["s"]
    if change.keys() == {"documents"}:
        assert Shards(tmp_path / "s", "train").documents == len(change["documents"]["train"])


def test_fewer_documents_than_were_encoded_are_refused(tokenizer, tmp_path, interrupted):
    parts = [part.texts for part in building._parts({"train": DOCUMENTS["train"]}, tokenizer)]
    with pytest.raises(ValueError, match="holds the start of another build, of more documents"):
        build({"train": parts[0] + parts[1]}, tokenizer, tmp_path / "s", tokens_per_file=1000, processes=1)


def test_one_build_at_a_time(tokenizer, tmp_path):
    def texts():
        yield from DOCUMENTS["train"]
        with pytest.raises(BlockingIOError, match="another process builds these shards: wait for it, or stop it"):
            build({"train": ["other"]}, tokenizer, tmp_path / "s")

    assert build({"train": texts()}, tokenizer, tmp_path / "s", processes=1).documents == 90


def test_a_process_that_dies_is_an_error_that_can_be_gone_on_from(tokenizer, tmp_path, expected):
    def texts():
        for text in DOCUMENTS["train"]:
            yield text
            for child in psutil.Process().children():
                child.kill()

    with pytest.raises(RuntimeError, match="a process that encodes text ended with -9"):
        build(DOCUMENTS | {"train": texts()}, tokenizer, tmp_path / "s", tokens_per_file=1000, processes=2)
    assert not psutil.Process().children()
    go_on(tokenizer, tmp_path / "s")
    assert contents(tmp_path / "s") == expected


def test_what_fails_in_a_process_comes_with_its_traceback(tokenizer, tmp_path):
    with (workers.Workers(tmp_path / "nothing", np.dtype("uint16"), 1) as pool,
          pytest.raises(RuntimeError, match="ended with 1")):
        pool.submit(workers.pack(["a"])).result()
    tokenizer.save(tmp_path / "tokenizer")
    with (workers.Workers(tmp_path / "tokenizer", np.dtype("uint16"), 1) as pool,
          pytest.raises(RuntimeError, match="UnicodeDecodeError")):
        pool.submit(workers.pack(["a"])[:-1] + b"\xff").result()


def test_a_lone_surrogate_is_named(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud83d' at character 1"):
        build({"train": ["a", "b\ud83d"]}, tokenizer, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_text_is_read_no_further_than_work_goes_on(tokenizer, tmp_path):
    """Memory holds a few parts for each process, whatever the size of the corpus."""
    log, far = tmp_path / ".s.part" / "parts.jsonl", []

    def texts():
        for number, text in enumerate(sentences(400)):
            done = sum(json.loads(line)["documents"] for line in log.read_text().splitlines()[1:]) if number > 9 else 0
            far.append(number - done)
            yield text

    build({"train": texts()}, tokenizer, tmp_path / "s", processes=2)
    assert len(far) == 400 and max(far) < 12 * (2 * 2 + 2), "about ten documents a part, four parts in work"


@pytest.mark.parametrize("argument", [{"processes": 0}, {"tokens_per_file": 0}, {"tokens_per_file": 2.5}])
def test_bad_arguments(tokenizer, tmp_path, argument):
    name, value = next(iter(argument.items()))
    with pytest.raises(ValueError, match=f"{name}={value} is not a whole number of at least 1: use"):
        build(DOCUMENTS, tokenizer, tmp_path / "s", **argument)
    with pytest.raises(ValueError, match="documents has no split"):
        build({}, tokenizer, tmp_path / "s")


def test_arrays_of_ids_are_those_of_lists(tokenizer):
    texts = ["", " ", "<|bos|> <|user_start|>", "a  b\n\n   c", " " * 10_000 + "x", "é€😀\u2003\u2003z", *sentences(50)]
    for text in texts:
        ids = tokenizer.encode_array(text)
        assert ids.tolist() == tokenizer.encode(text) and max(ids, default=0) < 300 - len(tokenizer.special_ids)
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer.encode_array("\ud800")
