"""Corpora: harvest of installed documentation, split, manifest, formats, errors for bad input."""

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tinylib import checks, corpus
from tinylib.corpus import installed_docs, split_by_name
from tinylib.corpus.reading import read

MODULES = {
    "pack/__init__.py": '"""A package.\n\nIt has two modules."""\n',
    "pack/tools.py": '''
"""Tools to cut and to join."""
import nothing_that_exists
class Saw(Base):
    """Cuts.

    This paragraph stands in two modules and is long enough to count as one.
    """
    def cut(self, wood, *, times=2): "Cut the wood."
    def silent(self): return None
    class Blade:
        "Sharp."
def join(a: int, b=None):
    """Join a and b.
        Indented."""
''',
    "pack/copy.py": '''
"""Tools to copy.

This paragraph stands in two modules
    and is long enough to count as one.
"""
def only_repeats():
    "This paragraph stands in two modules and is long enough to count as one."
''',
    "pack/twin.py": "x = 1\n", "pack/broken.py": "def (:\n", "pack/null.py": "\0",
    "pack/deep.py": f"def f(x={'+'.join('1' * 3_000)}): 'Adds.'", "pack/deeper.py": f"x = {'-' * 200_000}1",
    "pack/surrogate.py": '"""A \\ud800."""',
    "pack/tests/__init__.py": '"""Tests."""', "pack/test_saw.py": '"""Tests."""', "pack/_vendor/old.py": '"""Old."""',
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("site")
    for name, text in MODULES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return installed_docs.Source(root / "pack", "pack")


@pytest.fixture(scope="module")
def stdlib():
    return corpus.load("pydocs-stdlib")


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


# Harvest


def documentation(source):
    """Documents harvested from docstrings, by name."""
    return {document.name: document.text for document in installed_docs.harvest([source], installed_docs.documentation)}


def test_one_document_a_module_without_tests_and_copies_of_others(source):
    assert set(documentation(source)) == {"pack", "pack.tools", "pack.copy", "pack.surrogate"}


def test_a_document_reads_like_documentation(source):
    text = documentation(source)["pack.tools"]
    assert text.startswith("pack.tools\n\nTools to cut and to join.\n\nclass Saw(Base)\n\nCuts.")
    assert "\n\nSaw.cut(self, wood, *, times=2)\n\nCut the wood." in text
    assert "\n\nclass Saw.Blade\n\nSharp." in text
    assert text.endswith("join(a: int, b=None)\n\nJoin a and b.\nIndented.")
    assert "silent" not in text


def test_a_repeated_paragraph_is_kept_once_and_an_emptied_heading_goes(source):
    texts = documentation(source).values()
    assert sum("long enough to count" in text for text in texts) == 1
    assert not any("only_repeats" in text for text in texts)


def test_lone_surrogates_become_replacement_characters(source):
    assert documentation(source)["pack.surrogate"] == "pack.surrogate\n\nA �."


def test_source_code_is_whole_and_exact_duplicates_go(source, tmp_path):
    shutil.copytree(source.folder, tmp_path / "twice")
    both = [source, installed_docs.Source(tmp_path / "twice", "again")]
    texts = [document.text for document in installed_docs.harvest(both, installed_docs.source_code)]
    assert MODULES["pack/tools.py"] in texts and len(set(texts)) == len(texts)


def test_parallel_harvest_equals_serial_and_a_dead_worker_fails_it():
    package = [installed_docs.Source(Path(asyncio.__file__).parent, "asyncio")]
    serial = installed_docs.harvest(package, installed_docs.documentation, processes=1)
    with pytest.raises(RuntimeError):
        installed_docs.harvest(package, lambda file: os._exit(3), processes=2)
    assert installed_docs.harvest(package, installed_docs.documentation, processes=2) == serial
    assert len(serial) > 20


def test_workers_do_not_run_the_script_again_and_end_with_the_harvest(tmp_path):
    (tmp_path / "unguarded.py").write_text("""
import asyncio, pathlib, psutil
from tinylib.corpus import installed_docs
print("once")
package = installed_docs.Source(pathlib.Path(asyncio.__file__).parent, "asyncio")
print(len(installed_docs.harvest([package], installed_docs.documentation, processes=2)) > 20)
print([child.pid for child in psutil.Process().children(recursive=True)
       if "resource_tracker" not in " ".join(child.cmdline())])
""")
    done = subprocess.run([sys.executable, tmp_path / "unguarded.py"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["once", "True", "[]"] and done.stderr == ""


# Built-in corpora


def test_stdlib_holds_real_documentation(stdlib):
    documents = {document.name: document.text for split in corpus.SPLITS for document in stdlib.documents(split)}
    assert json.decoder.JSONDecoder.__doc__.strip().splitlines()[0] in documents["json.decoder"]
    assert sum(map(len, documents.values())) > 1_000_000
    assert not any(name.split(".")[0] == "test" for name in documents)


def test_the_split_is_by_name_and_disjoint(stdlib):
    train, val = (list(stdlib.documents(split)) for split in ("train", "val"))
    assert 0.02 < len(val) / (len(train) + len(val)) < 0.06
    assert all(corpus.in_validation(document.name) for document in val)
    assert not any(corpus.in_validation(document.name) for document in train)
    texts = [hashlib.sha256(document.text.encode()).digest() for document in train + val]
    assert len(set(texts)) == len(texts)


def test_the_manifest_pins_files_counts_and_text(stdlib):
    manifest = json.loads(json.dumps(stdlib.manifest))
    for split, files in (("train", stdlib.train_files), ("val", stdlib.val_files)):
        entry, = manifest["splits"][split]["files"]
        assert entry == {"name": files[0].name, "bytes": files[0].stat().st_size,
                         "sha256": hashlib.sha256(files[0].read_bytes()).hexdigest()}
        texts = list(stdlib.texts(split))
        assert manifest["splits"][split]["documents"] == len(texts)
        assert manifest["splits"][split]["characters"] == sum(map(len, texts))
    assert manifest["sources"][0] == {"name": "python", "version": sys.version.split()[0], "licence": "PSF-2.0"}


SMALL = """
import asyncio, pathlib, resource
from tinylib import corpus
from tinylib.corpus import installed_docs
package = installed_docs.Source(pathlib.Path(asyncio.__file__).parent, "asyncio")
installed_docs.installed = lambda with_packages: [package]
"""


def test_a_failed_harvest_leaves_the_old_one_and_a_damaged_one_is_made_again(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "corpus" / "pydocs"
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    monkeypatch.setattr(installed_docs, "installed", lambda with_packages: [
        installed_docs.Source(Path(asyncio.__file__).parent, "asyncio")])
    manifest = corpus.fetch("pydocs")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000,) * 2); corpus.fetch('pydocs', refresh=True)"
    done = subprocess.run([sys.executable, "-c", SMALL + limit], capture_output=True, text=True)
    assert done.returncode == 1 and "OSError" in done.stderr
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["pydocs"]
    (folder / "train.parquet").write_bytes(before["train.parquet"][:-1])
    assert corpus.fetch("pydocs") == manifest
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_it_needs_no_torch_and_imports_nothing_that_it_reads():
    code = ("import sys; from tinylib.corpus import installed_docs; sys.modules['torch'] = None\n"
            "found = installed_docs.installed(with_packages=True)\n"
            "installed_docs.documentation(found[-1].modules()[0][1]); print(len(found), 'pandas' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) > 10 and out[1] == "False"


# Local files


def test_local_files_are_split_by_text_and_adding_files_changes_no_document_of_validation(tmp_path):
    write_lines(tmp_path / "a.jsonl", [f"document {number}" for number in range(500)])
    before = list(corpus.load(tmp_path).texts("val"))
    assert 5 < len(before) < 50
    write_lines(tmp_path / "b.jsonl", [f"document {number}" for number in range(400, 900)])
    after = corpus.load(tmp_path)
    assert set(before) <= set(after.texts("val"))
    assert set(after.texts("val")).isdisjoint(after.texts("train"))
    assert set(after.texts("val")) | set(after.texts("train")) == {f"document {number}" for number in range(900)}


def test_a_file_named_for_validation_is_it_and_its_texts_never_train(tmp_path):
    write_lines(tmp_path / "train.jsonl", ["one", "both", "two"])
    write_lines(tmp_path / "val.jsonl", ["both", "three"])
    found = corpus.load(tmp_path)
    assert (list(found.texts("train")), list(found.texts("val"))) == (["one", "two"], ["both", "three"])
    manifest = found.manifest
    assert manifest["split"] == "by file name"
    assert [(manifest["splits"][split]["documents"], manifest["splits"][split]["characters"])
            for split in corpus.SPLITS] == [(2, 6), (2, 9)] and manifest["splits"]["train"]["left_out"] == 1


def test_every_format_reads_alike(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"text {number} é\u2028 \x85" for number in range(300)]
    plain = write_lines(tmp_path / "plain.jsonl", texts)
    with gzip.open(tmp_path / "packed.jsonl.gz", "wb") as file:
        file.write(plain.read_bytes())
    with pa.output_stream(str(tmp_path / "packed.jsonl.zst"), compression="zstd") as file:
        file.write(plain.read_bytes())
    pq.write_table(pa.table({"id": list(range(300)), "text": texts}), tmp_path / "table.parquet")
    (tmp_path / "story.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    for file in tmp_path.iterdir():
        found = corpus.load(file)
        assert sorted([*found.texts("train"), *found.texts("val")]) == sorted(texts), file.name


def test_a_long_text_file_becomes_documents_at_empty_lines(tmp_path):
    paragraph = "word " * 300
    (tmp_path / "book.txt").write_text("\n\n".join([paragraph] * 20))
    documents = [*corpus.load(tmp_path / "book.txt").documents("train"),
                 *corpus.load(tmp_path / "book.txt").documents("val")]
    assert len(documents) == 7 and all(len(document.text) >= 4_000 for document in documents[:-1])
    assert sum(document.text.count(paragraph.strip()) for document in documents) == 20


def test_lone_surrogates_in_json_are_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud83d"}\n')
    found = corpus.load(tmp_path / "a.jsonl")
    assert [*found.texts("train"), *found.texts("val")] == ["a �"]


@pytest.mark.parametrize("name,content,message", [
    ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r"line 2 of .*a\.jsonl has no field 'text': use .* of txt that"),
    ("a.jsonl", b'{"text": 5}\n', r"line 1 of .*a\.jsonl has no text or messages in 'text' but 5"),
    ("a.jsonl", b"{\n", r"line 1 of .*a\.jsonl is no JSON object"),
    ("a.txt", "a line\nand more\n".encode("utf-16-le"), r"a\.txt looks like UTF-16 or UTF-32, line 1 is full"),
    ("a.jsonl", '{"text": "x"}'.encode("utf-32-be"), r"a\.jsonl looks like UTF-16 or UTF-32, line 1"),
    ("a.txt", b"\xff\xfeH\0i\0", r"a\.txt is not UTF-8 soon after line 0"),
    ("a.parquet", b"PAR1 cut", r"a\.parquet is no whole \.parquet file"),
])
def test_a_broken_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(corpus.load(tmp_path / name).texts("train"))


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"content": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column='text' of .* is no .* are content \(string\), id \(int64\)"):
        list(corpus.load(tmp_path).texts("train"))
    found = corpus.load(tmp_path, column="content")
    assert [*found.texts("train"), *found.texts("val")] == ["a"]


def test_a_column_that_is_there_twice_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column='text' is in .*a\.parquet more than once"):
        list(corpus.load(tmp_path).texts("train"))


def test_a_file_name_that_is_not_utf8_is_named(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
    with pytest.raises(ValueError, match=r"caf\\udce9\.txt' has a name that is not UTF-8: rename it"):
        corpus.load(tmp_path)


def test_a_relative_path_with_a_folder_in_it(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    assert everything("d/a.txt") == everything("d") == everything(Path("d")) == ["hello"]


def test_beside_files_named_for_training_others_are_not_trained_on(tmp_path):
    write_lines(tmp_path / "train.jsonl", ["one", "two"])
    write_lines(tmp_path / "eval.jsonl", ["three"])
    (tmp_path / "requirements.txt").write_text("numpy")
    found = corpus.load(tmp_path)
    assert (list(found.texts("train")), list(found.texts("val"))) == (["one", "two"], ["three"])
    assert corpus.table(found.manifest)["unused files"] == "requirements.txt"


def test_no_validation_and_a_file_beside_its_packed_self_are_said(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["one"])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    rows = corpus.table(corpus.fetch(tmp_path))
    assert rows["perhaps twice"] == "a.jsonl.gz"
    assert rows["val documents"].startswith("0: nothing to evaluate on, so add text, or a file that is named val")


def test_a_path_that_is_not_there_is_said_before_the_network(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"^there is no file or folder data/mycorpus here, and no data set of"):
        corpus.fetch("data/mycorpus")


def test_missing_names_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no corpus 'pydoc': .* the names are pydocs, pydocs-stdlib, pysource"):
        corpus.load("pydoc")
    with pytest.raises(ValueError, match=r"holds no text that can be read: use \.txt, \.jsonl, \.parquet"):
        corpus.load(tmp_path)
    found = corpus.load(write_lines(tmp_path / "a.jsonl", ["x"]))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jsonl is missing from its corpus"):
        list(found.texts("train"))
    with pytest.raises(ValueError, match="split='test' is not a choice: use train or val"):
        found.texts("test")


def everything(path, **options):
    """All texts of a corpus, sorted."""
    found = corpus.load(path, **options)
    return sorted([*found.texts("train"), *found.texts("val")])


def test_a_manifest_equals_what_the_file_system_and_hashlib_say(tmp_path):
    texts = [f"text {number} ä" for number in range(200)]
    (tmp_path / "deep").mkdir()
    paths = [write_lines(tmp_path / "a.jsonl", texts[:150]), write_lines(tmp_path / "deep" / "a.jsonl", texts[100:])]
    manifest = corpus.fetch(tmp_path)
    for split in corpus.SPLITS:
        assert [(file["name"], file["bytes"], file["sha256"]) for file in manifest["splits"][split]["files"]] == [
            (name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
            for name, path in zip(("a.jsonl", "deep/a.jsonl"), paths, strict=True)]
    lines = [json.loads(line)["text"] for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    held_out = [text for text in lines if corpus.in_validation(text)]
    counts = {split: (facts["documents"], facts["characters"]) for split, facts in manifest["splits"].items()}
    assert counts == {"val": (len(held_out), sum(map(len, held_out))),
                      "train": (250 - len(held_out), sum(map(len, lines)) - sum(map(len, held_out)))}
    assert (manifest["source"], manifest["licence"]) == (str(tmp_path), "not stated")
    assert manifest == corpus.fetch(str(tmp_path)) and manifest["sha256"] != corpus.fetch(paths[0])["sha256"]


@pytest.mark.parametrize("train,val,unused", [
    ("train.jsonl", "eval.jsonl", ""),
    ("data.jsonl", "test.jsonl", ""),
    ("data.jsonl", "holdout.jsonl test.jsonl", ""),
    ("data.jsonl", "dev.jsonl val.jsonl", "eval.jsonl held-out.jsonl test.jsonl"),
    ("data.jsonl", "Held_Out-3.JSONL Hold-Out.txt evaluation.v2.txt hold_out/1.txt testing.txt", ""),
    ("train/a.txt train/b.txt", "validation/a.txt", ""),
    ("en/train/a.txt", "en/valid/a.txt", "en/test/a.txt"),
    ("training/a.txt", "test_set/a.txt", ""),
    ("devices.txt evaluations.txt latest.txt laval.txt trainer.txt values.txt", "", ""),
    ("lyon.txt paris.txt val-de-marne.txt", "", ""),
    ("centre-val-de-loire.txt val-de-loire.txt", "", ""),
    ("lyon.txt my_train_validation_notes.txt", "", ""),
    ("lyon.txt test-driven-development.txt", "", ""),
    ("train/val-de-marne.txt", "val/train-stations.txt", ""),    # the whole name of the folder outweighs a first word
    ("books.txt", "wiki-test.txt", ""),
    ("wiki.txt", "test-wiki.txt", ""),
    ("wiki-1.txt wiki-2.txt", "test_wiki_1.txt", ""),
    ("train_fr.txt", "test_de.txt", ""),
    ("c4-train.00000-of-01024.json.gz", "c4-validation.00000-of-00008.json.gz", ""),
    ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt", ""),
    ("data/train-00000-of-00002-a09b74b3ef9c3b56.parquet", "data/test-00000-of-00001.parquet", ""),
    ("sample/10BT/000_00000.parquet sample/10BT/001_00000.parquet", "", ""),
    ("fineweb_train_000001.txt", "fineweb_val_000000.txt", ""),
    ("a.txt", "", "dev/train.txt train-eval.txt train_val.txt"),    # named for training and as held out
    ("a.txt", "test1.txt", "test1/train.txt"),
])
def test_names_that_tell_the_split(train, val, unused):
    expected = tuple(names.split() for names in (train, val, unused))
    assert split_by_name([name for names in expected for name in names]) == expected


@pytest.mark.parametrize("names", [["test.jsonl"], ["val.jsonl", "test.jsonl"], ["dev/train.jsonl", "dev/val.jsonl"]])
def test_held_out_files_alone_are_an_error(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_lines(tmp_path / name, ["one"])
    with pytest.raises(checks.UserError, match=r"all files are named as held out \(.*\.jsonl\).* rename"):
        corpus.load(tmp_path)
    assert everything(tmp_path / names[0]) == ["one"]    # the user's choice, so its own name doesn't count


def test_held_out_texts_are_not_trained_on_and_listed(tmp_path):
    folder = tmp_path / "test" / "corpus"    # a folder outside the corpus doesn't count
    folder.mkdir(parents=True)
    for name in ("data", "val", "test"):
        write_lines(folder / f"{name}.jsonl", [f"{name} {number}" for number in range(300)])
    (folder / "README.md").write_text("not read")
    found = corpus.load(folder)
    assert list(found.texts("train")) == [f"data {number}" for number in range(300)]
    assert list(found.texts("val")) == [f"val {number}" for number in range(300)]
    manifest = found.manifest
    assert (manifest["split"], manifest["unused"], manifest["passed_over"]) == ("by file name", ["test.jsonl"], 1)
    rows = corpus.table(manifest)
    assert rows["val files"] == "1: val.jsonl" and rows["val documents"].startswith("300,")
    assert (rows["unused files"], rows["passed over"]) == ("test.jsonl", "1 of other formats")
    assert rows["sha256"] == manifest["sha256"]
    for name in ("val", "test"):
        (folder / f"{name}.jsonl").unlink()
    found = corpus.load(folder)
    held_out = [text for text in everything(folder) if corpus.in_validation(text)]
    assert sorted(found.texts("val")) == held_out != []
    assert not {"unused files", "val files"} & set(corpus.table(found.manifest))    # a hash takes from every file


def test_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    write_lines(tmp_path / "d" / "a.jsonl", ["hello"])
    monkeypatch.chdir(tmp_path)
    manifests = [corpus.fetch(name) for name in ("d/a.jsonl", "d", ".", Path("d"), "../" + tmp_path.name + "/d")]
    assert len({manifest["sha256"] for manifest in manifests}) == 1
    assert [manifest["name"] for manifest in manifests] == ["a.jsonl", "d", tmp_path.name, "d", "d"]
    found = corpus.load("d")
    monkeypatch.chdir("/")
    assert [*found.texts("train"), *found.texts("val")] == ["hello"]


@pytest.mark.parametrize("name,content,texts", [
    ("a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n", ["one\ntwo"]),
    ("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}', ["one", "two"]),
    ("a.jsonl", b'{"text": null}\n{"text": ""}\n{"text": "\\u0000 \\r\\n"}\n', ["\0 \r\n"]),
])
def test_marks_and_line_ends_of_other_systems(tmp_path, name, content, texts):
    (tmp_path / name).write_bytes(content)
    assert everything(tmp_path / name) == texts


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.zst"])
def test_an_empty_corpus_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="holds no document: its files are empty"):
        corpus.fetch(tmp_path)
    write_lines(tmp_path / "b.jsonl", ["one"])    # beside a file that isn't, an empty one does no harm
    assert everything(tmp_path) == ["one"]


def packed(path, data):
    import pyarrow as pa

    with pa.output_stream(str(path), compression={".gz": "gzip", ".zst": "zstd"}[path.suffix]) as file:
        file.write(data)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_files_of_several_parts_are_whole_and_cut_ones_are_named(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    data = packed(path, write_lines(tmp_path / "plain.jsonl", [f"text {number}" for number in range(99)]).read_bytes())
    path.write_bytes(data + data)
    assert len(everything(path)) == 198
    for cut in (len(data) // 2, len(data) - 2):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=rf"a\.jsonl\{suffix} is no whole \.jsonl file \(.*\): fetch or write it"):
            corpus.fetch(path)


def test_parquet_columns_that_hold_text_are_read_and_others_are_an_error(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.array(["one", None, "", "two"])
    columns = {"text": text, "large": text.cast(pa.large_string()), "packed": text.dictionary_encode(),
               "number": [1, 2, 3, 4], "nested": [{"text": "x"}] * 4, "listed": [["x"]] * 4, "null": pa.nulls(4),
               "bytes": [b"x"] * 4, "name": [1, 2, 3, 4]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    for column in ("text", "large", "packed"):
        assert everything(tmp_path / "a.parquet", column=column) == ["one", "two"]
    for column in ("number", "nested", "listed", "null", "bytes", "nested.text", "absent"):
        with pytest.raises(ValueError, match=rf"'{column}' of .* is no column of text or messages: .* text \(string\)"):
            everything(tmp_path / "a.parquet", column=column)


def test_parquet_text_that_is_no_utf8_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    ends = pa.array([0, 4, 6], pa.int32()).buffers()[1]
    raw = pa.Array.from_buffers(pa.string(), 2, [None, ends, pa.py_buffer(b"good\xff\xfe")])
    pq.write_table(pa.table({"text": raw}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet is no whole \.parquet file \('utf-8' codec can't"):
        everything(tmp_path)


def test_one_huge_row_group_is_read_in_bounded_memory(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    random.seed(0)
    table = pa.table({"text": [random.randbytes(4_000).hex() for _ in range(4_000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4_000, use_dictionary=False, compression="none")
    del table
    before, most = pa.total_allocated_bytes(), 0
    for _ in read(tmp_path / "a.parquet"):
        most = max(most, pa.total_allocated_bytes() - before)
    assert (tmp_path / "a.parquet").stat().st_size > 32e6 > 2 * most


def test_text_without_an_empty_line_does_not_become_one_document(tmp_path):
    text = "".join(f"{number}\n" if number % 3 else f"{number} ü" for number in range(60_000))
    (tmp_path / "lines.txt").write_text(text, encoding="utf-8")
    (tmp_path / "line.txt").write_text(text.replace("\n", " "), encoding="utf-8")
    for name, joint in (("lines.txt", "\n"), ("line.txt", "")):
        texts = [document.text for document in read(tmp_path / name)]
        assert len(texts) > 3 and max(map(len, texts)) < 200_000
        assert joint.join(texts) == (text if joint else text.replace("\n", " ")).strip("\n")


def test_folders_are_walked_once_without_what_is_hidden(tmp_path):
    root = tmp_path / "root"
    for name in ("a/one.jsonl", ".ipynb_checkpoints/two.jsonl", "a/._one.jsonl", "b/.cache/three.jsonl"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_lines(root / name, [name])
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "self.jsonl").symlink_to(root / "a" / "self.jsonl")
    (tmp_path / "elsewhere").mkdir()
    write_lines(tmp_path / "elsewhere" / "linked.jsonl", ["linked"])
    (root / "far").symlink_to(tmp_path / "elsewhere")
    (root / "notes.md").write_text("not read")
    with pytest.raises(FileNotFoundError, match=r"self\.jsonl is missing"):
        everything(root)
    (root / "a" / "self.jsonl").unlink()
    assert everything(root) == ["a/one.jsonl", "linked"]


def test_a_folder_may_mix_formats_and_the_one_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("from text")
    write_lines(tmp_path / "b.jsonl", ["from lines"])
    assert everything(tmp_path) == ["from lines", "from text"]
    with pytest.raises(ValueError, match=r"line 1 of .*b\.jsonl has no field 'body': use column .* of text that"):
        everything(tmp_path, column="body")


@contextlib.contextmanager
def as_a_guest():
    """Drop root's rights, because root may read everything."""
    try:
        if os.getuid() == 0:
            os.seteuid(65_534)
        yield
    finally:
        os.seteuid(os.getuid())


@pytest.mark.parametrize("closed", ["a.jsonl", "deep"])
def test_what_may_not_be_read_is_named(closed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "deep").mkdir()
        write_lines(folder / "a.jsonl", ["x"])
        (folder / closed).chmod(0)
        with as_a_guest(), pytest.raises(PermissionError, match=str(folder / closed)):
            everything(folder)
