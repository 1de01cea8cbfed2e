"""Data sets of the hub, downloaded over HTTP from a hub on loopback with faults."""

import hashlib
import io
import json
import os
import subprocess
import sys
import time

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Dataset, Hub

from tinylib import corpus
from tinylib.checks import ConfigError, UserError

CLIMBMIX = "karpathy/climbmix-400b-shuffle"
SHARDS = [f"shard_{number:05d}.parquet" for number in range(5)]


def parquet(texts, column="text"):
    """A parquet file as bytes, of texts that don't compress."""
    file = io.BytesIO()
    pq.write_table(pa.table({column: texts}), file, compression="none", use_dictionary=False)
    return file.getvalue()


def noise(shard, row):
    """A text of some thousand characters, the same every time."""
    return " ".join(hashlib.sha256(f"{shard} {row} {part}".encode()).hexdigest() for part in range(64))


CLIMBMIX_FILES = {name: parquet([noise(name, row) for row in range(20)]) for name in SHARDS}


@pytest.fixture
def hub():
    datasets = {CLIMBMIX: Dataset({**CLIMBMIX_FILES, "README.md": b"# Climbmix"}, {"license": "odc-by"})}
    with Hub(datasets) as server:
        yield server


@pytest.fixture
def slept(monkeypatch):
    """The seconds for which the hub library would have slept; nothing sleeps."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """This process, with the hub on loopback as the library's endpoint; the value is the library's cache."""
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url())
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        hub.url() + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)    # these shards are smaller than its 10 MB
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    yield cache
    huggingface_hub.close_session()


@pytest.fixture
def fetch(here, slept):
    return corpus.fetch


def whole(cache):
    """The whole files in the cache, by name; asserts that nothing else is there."""
    assert not list(cache.rglob("*.incomplete"))
    files = {file.name: file.read_bytes() for file in cache.rglob("*.parquet")}
    assert all(CLIMBMIX_FILES[name] == data for name, data in files.items())
    assert len(list(cache.glob("*/blobs/*"))) == len(files)
    return sorted(files)


# What is fetched


def test_the_manifest_of_a_fetch(hub, fetch):
    manifest = fetch("climbmix", shards=2)
    assert (manifest["licence"], manifest["split"]) == ("odc-by", "by file: the last one")
    assert (manifest["source"], manifest["training_files"]) == (f"{hub.url()}/datasets/{CLIMBMIX}", "2 of 4")
    assert manifest["revision"] == hub.datasets[CLIMBMIX].revision
    for split, names in (("train", SHARDS[:2]), ("val", SHARDS[-1:])):
        assert manifest["splits"][split]["documents"] == 20 * len(names)
        assert [(file["name"], file["bytes"], file["sha256"]) for file in manifest["splits"][split]["files"]] == [
            (name, len(CLIMBMIX_FILES[name]), hashlib.sha256(CLIMBMIX_FILES[name]).hexdigest()) for name in names]


def test_what_is_whole_is_never_asked_for_again(hub, fetch, here):
    fetch("climbmix", shards=1)
    before = len(hub.requests)
    one = fetch("climbmix")    # the number of shards is remembered
    assert one["training_files"] == "1 of 4" and len(hub.requests) == before
    three = fetch("climbmix", shards=3)
    assert three["splits"]["val"] == one["splits"]["val"]
    assert [hub.sent(name) for name in SHARDS] == [[0], [0], [0], [], [0]]
    assert corpus.load("climbmix", shards=2).train_files == corpus.load("climbmix").train_files[:2]
    found = corpus.load("climbmix")    # the number that was fetched, not what was loaded since
    train, val = set(found.texts("train")), set(found.texts("val"))
    assert len(train) == 60 and len(val) == 20 and not train & val
    assert val == {noise(SHARDS[-1], row) for row in range(20)}


def test_a_training_text_that_is_in_validation_is_left_out(hub, fetch):
    hub.datasets["some/pair"] = Dataset({"a.parquet": parquet(["one", "both", "two"]), "b.parquet": parquet(["both"])})
    splits = fetch("some/pair")["splits"]
    assert (splits["train"]["documents"], splits["train"]["left_out"], splits["val"]["documents"]) == (2, 1, 1)
    assert list(corpus.load("some/pair").texts("train")) == ["one", "two"]


def test_a_newer_revision_is_taken_only_when_asked_for(hub, fetch):
    old = fetch("climbmix", shards=1)["revision"]
    hub.datasets[CLIMBMIX].files[SHARDS[0]] = parquet(["new"])
    assert fetch("climbmix")["revision"] == old
    manifest = fetch("climbmix", refresh=True)
    assert manifest["revision"] == hub.datasets[CLIMBMIX].revision != old
    assert manifest["splits"]["train"]["documents"] == 1 and manifest["training_files"] == "1 of 4"


@pytest.mark.parametrize("files,rule,train,val,unused", [
    (["data/train-0.parquet", "data/validation-0.parquet", "data/test-00000-of-00001.parquet"], "by file name",
     ["train-0"], ["validation-0"], ["data/test-00000-of-00001.parquet"]),
    (["plain/train/0.parquet", "plain/test/0.parquet"], "by file name", ["train/0"], ["test/0"], []),
    (["wiki.parquet", "wiki_eval.parquet"], "by file name", ["wiki"], ["wiki_eval"], []),
    (["train-0.parquet", "train-1.parquet", "train-test.parquet"], "by file: the last one", ["train-0"], ["train-1"],
     ["train-test.parquet"]),
    (["a.parquet", "b.parquet", "c.parquet"], "by file: the last one", ["a", "b"], ["c"], []),
    (["latest.parquet", "value.parquet"], "by file: the last one", ["latest"], ["value"], []),
])
def test_any_other_data_set(hub, fetch, files, rule, train, val, unused):
    hub.datasets["some/texts"] = Dataset({name: parquet([f"{name} {row}" for row in range(3)], "content")
                                          for name in files} | {"README.md": b"# Texts", "a.csv": b"1"})
    manifest = fetch("some/texts", column="content")
    assert (manifest["split"], manifest["licence"], manifest["column"]) == (rule, "not stated", "content")
    assert [[file["name"].removesuffix(".parquet") for file in manifest["splits"][split]["files"]]
            for split in ("train", "val")] == [train, val]
    assert (manifest["unused"], manifest["passed_over"]) == (unused, 2)
    assert len(list(corpus.load("some/texts").texts("val"))) == 3    # the column is remembered


def test_a_data_set_of_tests_alone_is_not_trained_on(hub, fetch, tmp_path):
    hub.datasets["some/tests"] = Dataset({"en/test/0.parquet": parquet(["one"]), "en/dev.parquet": parquet(["two"])})
    with pytest.raises(UserError, match=r"all files are named as held out \(en/dev.parquet, en/test/0.parquet\)"):
        fetch("some/tests")
    assert not (tmp_path / "home" / "data" / "corpus" / "some--tests").exists()
    assert fetch("some/tests/en/test")["split"].startswith("by hash")    # the user's choice, so its name doesn't count


def test_one_file_is_split_by_hash(hub, fetch):
    hub.datasets["some/texts"] = Dataset({"all.parquet": parquet([f"text {row}" for row in range(300)])},
                                         {"license": ["cc-by-4.0", "mit"]})
    manifest = fetch("some/texts")
    assert (manifest["split"], manifest["licence"]) == ("by hash of the text, 4% validation", "cc-by-4.0, mit")
    assert manifest["splits"]["val"]["documents"] == sum(corpus.in_validation(f"text {row}") for row in range(300)) > 0


def test_folders_are_not_mixed_unless_one_is_chosen(hub, fetch):
    names = [f"{language}/{split}-0.parquet" for language in ("de", "en", "fr") for split in ("train", "test")]
    hub.datasets["wiki/pedia"] = Dataset({name: parquet([name]) for name in names})
    with pytest.raises(UserError, match=r"wiki/pedia holds 3 folders of documents \(de, en, fr\).*wiki/pedia/fr"):
        fetch("wiki/pedia")
    fetch("wiki/pedia/en")
    assert list(corpus.load("wiki/pedia/en").texts("train")) == ["en/train-0.parquet"]


def test_smoltalk_holds_conversations(hub, fetch):
    """The short name, its column of messages, and files named for training and test."""
    def talks(name):
        return parquet([[{"content": f"{name} {row}", "role": "user"}, {"content": "Yes.", "role": "assistant"}]
                        for row in range(3)], "messages")

    names = ("train-00000-of-00001", "test-00000-of-00001")
    hub.datasets["HuggingFaceTB/smol-smoltalk"] = Dataset({f"data/{name}.parquet": talks(name) for name in names}, {})
    manifest = fetch("smoltalk")
    assert [manifest["splits"][split]["documents"] for split in corpus.SPLITS] == [3, 3]
    first = next(corpus.load("smoltalk").documents("val"))
    assert json.loads(first.text)[0] == {"content": "test-00000-of-00001 0", "role": "user"}


def test_json_lines_where_there_is_no_parquet(hub, fetch):
    lines = "".join(json.dumps({"text": f"text {row}"}) + "\n" for row in range(3)).encode()
    hub.datasets["some/lines"] = Dataset({"a.jsonl": lines, "b.jsonl": b'{"text": "last"}\n', "c.txt": b"a licence"})
    assert fetch("some/lines")["splits"]["train"]["documents"] == 3
    hub.datasets["some/pictures"] = Dataset({"a.jpg": b"\xff"})
    with pytest.raises(UserError, match=r"some/pictures holds no \.parquet and no \.jsonl file"):
        fetch("some/pictures")


# Faults


@pytest.mark.parametrize("fault,asked", [("cut", "resumed"), ("429", "again"), ("503", "again"), ("500", "again"),
                                         ("short", "again"), ("wrong", "again")])
def test_a_fault_that_passes_is_survived(hub, fetch, here, slept, fault, asked):
    hub.fail(SHARDS[1], fault)
    fetch("climbmix", shards=2)
    assert whole(here) == [SHARDS[0], SHARDS[1], SHARDS[4]]
    first, second = hub.sent(SHARDS[1])
    kept = len(CLIMBMIX_FILES[SHARDS[1]]) // 2 // 4096 * 4096    # whole chunks of what came before the cut
    assert (first, second) == (0, kept if asked == "resumed" else 0) and kept > 0
    assert fault != "429" or max(slept) >= 7    # seconds, as its Retry-After says


@pytest.mark.parametrize("fault,reason", [
    ("dead", "RemoteProtocolError"), ("short", "Consistency check failed"), ("wrong", "it came with other content"),
    ("429", "429"), ("500", "500"), ("503", "503")])
def test_a_fault_that_stays_fails_the_fetch_and_the_next_one_finishes_it(hub, fetch, here, fault, reason):
    hub.fail(SHARDS[1], fault, times=None)
    with pytest.raises(ConnectionError) as failure:
        fetch("climbmix", shards=3)
    for part in (f"{SHARDS[1]} of {CLIMBMIX}", reason, "what came whole is kept", "run it again"):
        assert part in str(failure.value)
    assert whole(here) == [SHARDS[0]]
    hub.heal()
    hub.requests.clear()
    assert fetch("climbmix")["splits"]["train"]["documents"] == 60    # as many shards as were asked for
    assert [hub.sent(name) for name in SHARDS] == [[], [0], [0], [], [0]]
    assert whole(here) == [*SHARDS[:3], SHARDS[4]]


@pytest.mark.parametrize("fault", ["429", "503"])
def test_a_listing_that_fails_leaves_nothing_behind(hub, fetch, here, tmp_path, fault):
    hub.fail("list", fault, times=None)
    with pytest.raises(ConnectionError, match=f"can't fetch the list of files of {CLIMBMIX}.*{fault}"):
        fetch("climbmix")
    assert not (tmp_path / "home").exists() and not here.exists()
    hub.heal()
    fetch("climbmix")


def test_what_rots_in_the_cache_is_fetched_again(hub, fetch, here):
    fetch("climbmix", shards=1)
    blob = next(here.rglob(SHARDS[0])).resolve()
    blob.write_bytes(bytes(len(CLIMBMIX_FILES[SHARDS[0]])))
    with pytest.raises(ValueError, match=r"shard_00000\.parquet is no whole \.parquet file.*fetch"):
        list(corpus.load("climbmix").texts("train"))
    fetch("climbmix")
    assert hub.sent(SHARDS[0]) == [0, 0]
    assert whole(here) == [SHARDS[0], SHARDS[4]]


def test_without_a_network(hub, fetch, here, tmp_path):
    fetch("climbmix", shards=1)
    hub.close()
    huggingface_hub.close_session()    # and the connection that it kept
    fetch("climbmix")    # what is whole needs none
    with pytest.raises(ConnectionError, match=rf"can't fetch {SHARDS[1]} of {CLIMBMIX} \(ConnectError: .*HF_ENDPOINT"):
        fetch("climbmix", shards=2)
    with pytest.raises(ConnectionError, match=r"run it again with a network.*the corpus pydocs needs no network"):
        fetch("fineweb-edu")
    assert [path.name for path in (tmp_path / "home" / "data" / "corpus").iterdir()] == ["climbmix"]


@pytest.mark.parametrize("name,message", [
    ("no/such", "RepositoryNotFoundError.*so check the name"), ("some/gated", "GatedRepoError.*accept the terms")])
def test_a_data_set_that_may_not_be_read(hub, fetch, name, message):
    hub.datasets["some/gated"] = Dataset({"a.parquet": parquet(["x"])}, gated=True)
    with pytest.raises(ConnectionError, match=f"can't fetch the list of files of {name} \\({message}"):
        fetch(name)


def test_more_shards_than_there_are(fetch):
    for shards in (5, 0, -1):
        with pytest.raises(ConfigError, match=f"shards={shards} is not a whole number from 1 to 4"):
            fetch("climbmix", shards=shards)


def test_a_column_that_is_not_there_is_named_and_not_remembered_for_good(hub, fetch):
    with pytest.raises(UserError, match=r"column='content' of .* its columns are text \(string\)"):
        fetch("climbmix", column="content")
    fetch("climbmix", column="text")


# Through the environment, as users set it


def command(hub, home, shards=None, **settings):
    environment = {**os.environ, "HF_ENDPOINT": hub.url(), "HF_HOME": str(home / "hf"), "TINYLIB_HOME": str(home),
                   "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", **settings}
    code = f"import json; from tinylib import corpus; print(json.dumps(corpus.fetch('climbmix', shards={shards})))"
    return [sys.executable, "-c", code], environment


def child(hub, home, shards=None, **settings):
    line, environment = command(hub, home, shards, **settings)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)


def test_mirror_token_cache_and_offline_are_those_of_the_hub_library(hub, tmp_path):
    hub.datasets[CLIMBMIX].gated = True
    done = child(hub, tmp_path, shards=1, HF_TOKEN="hf_secret")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    asked = [request for request in hub.requests if "/api/agent" not in request.path]    # the library asks that itself
    assert {(request.server, request.token) for request in asked} == {("hub", "Bearer hf_secret"), ("cdn", None)}
    assert whole(tmp_path / "hf" / "hub") == [SHARDS[0], SHARDS[4]]
    hub.requests.clear()
    again = child(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout and not hub.requests
    more = child(hub, tmp_path, shards=2, HF_HUB_OFFLINE="1")
    assert more.returncode == 1 and "unset HF_HUB_OFFLINE" in more.stderr and not hub.requests


def test_a_disk_that_takes_no_more(hub, tmp_path):
    """The operating system's own error in the middle of a file: a limit on the size of files instead of a full disk."""
    hub.datasets[CLIMBMIX].files[SHARDS[1]] = large = parquet([noise(SHARDS[1], row) for row in range(60)])
    line, environment = command(hub, tmp_path, shards=2)
    limit = ("import os, resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
             "os.execv(sys.argv[2], sys.argv[2:])")
    done = subprocess.run([sys.executable, "-c", limit, str(len(large) // 2), *line], env=environment,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and f"no room for {SHARDS[1]} of {CLIMBMIX}" in done.stderr and "HF_HOME" in done.stderr
    assert whole(tmp_path / "hf" / "hub") == [SHARDS[0]]
    manifest = json.loads(child(hub, tmp_path, shards=2).stdout)
    assert manifest["splits"]["train"]["documents"] == 80 and hub.sent(SHARDS[0]) == [0]


def test_people_see_progress_and_files_do_not(hub, tmp_path):
    import pty
    import termios

    line, environment = command(hub, tmp_path, shards=1)
    reader, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, stderr=terminal, timeout=120)
    os.close(terminal)
    shown = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert done.returncode == 0 and "100%" in shown and SHARDS[0] in shown
