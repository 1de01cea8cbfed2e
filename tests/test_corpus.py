"""Corpora: what is harvested, how it is split, what a manifest pins, and what bad input says."""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tinylib import corpus
from tinylib.corpus import harvest, hub

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
    "pack/surrogate.py": '"""A \\ud800."""',
    "pack/tests/__init__.py": '"""Tests."""', "pack/test_saw.py": '"""Tests."""', "pack/_vendor/old.py": '"""Old."""',
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("site")
    for name, text in MODULES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return harvest.Source(root / "pack", "pack")


@pytest.fixture(scope="module")
def stdlib():
    return corpus.load("pydocs-stdlib")


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


# Harvest


def test_one_document_a_module_without_tests_and_copies_of_others(source):
    names = {document.name for document in harvest.harvest([source], harvest.documentation)}
    assert names == {"pack", "pack.tools", "pack.copy", "pack.surrogate"}


def test_a_document_reads_like_documentation(source):
    text = {document.name: document.text for document in harvest.harvest([source], harvest.documentation)}["pack.tools"]
    assert text.startswith("pack.tools\n\nTools to cut and to join.\n\nclass Saw(Base)\n\nCuts.")
    assert "\n\nSaw.cut(self, wood, *, times=2)\n\nCut the wood." in text
    assert "\n\nclass Saw.Blade\n\nSharp." in text
    assert text.endswith("join(a: int, b=None)\n\nJoin a and b.\nIndented.")
    assert "silent" not in text


def test_a_repeated_paragraph_is_kept_once_and_an_emptied_heading_goes(source):
    documents = harvest.harvest([source], harvest.documentation)
    assert sum("long enough to count" in document.text for document in documents) == 1
    assert not any("only_repeats" in document.text for document in documents)


def test_lone_surrogates_become_replacement_characters(source):
    texts = {document.name: document.text for document in harvest.harvest([source], harvest.documentation)}
    assert texts["pack.surrogate"] == "pack.surrogate\n\nA �."


def test_source_code_is_whole_and_exact_duplicates_go(source, tmp_path):
    shutil.copytree(source.folder, tmp_path / "twice")
    both = [source, harvest.Source(tmp_path / "twice", "again")]
    texts = [document.text for document in harvest.harvest(both, harvest.source_code)]
    assert MODULES["pack/tools.py"] in texts and len(set(texts)) == len(texts)


def test_parallel_harvest_equals_serial(monkeypatch):
    modules = harvest.installed(with_packages=False)[0].modules()[:150]
    monkeypatch.setattr(harvest.hardware, "cores", lambda: 2)
    assert harvest._parallel(harvest.documentation, modules) == list(map(harvest.documentation, modules))
    with pytest.raises(RuntimeError, match=r"(?s)a process of the harvest ended with 1:.*JSONDecodeError"):
        harvest._parallel(harvest._work, modules)


# The built-in corpus


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


def test_harvesting_again_gives_the_same_hash(stdlib, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    assert corpus.fetch("pydocs-stdlib")["sha256"] == stdlib.manifest["sha256"]


def test_a_damaged_harvest_is_made_again_and_a_failed_one_leaves_nothing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(harvest, "installed", lambda with_packages: [source])
    monkeypatch.setattr(harvest.Source, "facts", lambda self: {"name": "pack"})
    first = harvest.built_in("pydocs", tmp_path / "c")
    first.train_files[0].write_bytes(b"cut")
    assert len(list(harvest.built_in("pydocs", tmp_path / "c").texts("train"))) >= 3
    monkeypatch.setattr(harvest, "_write_parquet", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        harvest.built_in("pydocs", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_it_needs_no_torch_and_imports_nothing_that_it_reads():
    code = ("import sys; from tinylib.corpus import harvest; sys.modules['torch'] = None\n"
            "found = harvest.installed(with_packages=True)\n"
            "harvest.documentation(found[-1].modules()[0]); print(len(found), 'pandas' in sys.modules)")
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
    assert found.manifest["split"] == "by file"


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
    ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r"line 2 of .*a\.jsonl is no JSON object with a field 'text'"),
    ("a.jsonl", b'{"text": 5}\n', r"line 1 of .*a\.jsonl has no text in 'text' but 5"),
    ("a.jsonl", b"{\n", r"line 1 of .*a\.jsonl is no JSON object"),
    ("a.txt", b"\xff\xfeH\0i\0", r"a\.txt is not UTF-8"),
    ("a.parquet", b"PAR1 cut", r"a\.parquet is no whole parquet file"),
])
def test_a_broken_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(corpus.load(tmp_path / name).texts("train"))


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"content": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column='text' is not in .*: its columns are content, id"):
        list(corpus.load(tmp_path).texts("train"))
    found = corpus.load(tmp_path, column="content")
    assert [*found.texts("train"), *found.texts("val")] == ["a"]


def test_what_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no corpus 'pydoc': .* the names are pydocs, pydocs-stdlib, pysource"):
        corpus.load("pydoc")
    with pytest.raises(ValueError, match=r"holds no text that can be read: use \.txt, \.jsonl, \.parquet"):
        corpus.load(tmp_path)
    found = corpus.load(write_lines(tmp_path / "a.jsonl", ["x"]))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jsonl is missing from its corpus"):
        list(found.texts("train"))
    with pytest.raises(ValueError, match="split='test' is not a split: use train or val"):
        found.texts("test")


# The hub


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A hub of five shards in a folder; `calls` records what was asked of it."""
    import huggingface_hub
    import pyarrow as pa
    import pyarrow.parquet as pq

    remote, calls = tmp_path / "remote", []
    remote.mkdir()
    for number in range(5):
        pq.write_table(pa.table({"text": [f"{number}-{row}" for row in range(3)]}),
                       remote / f"shard_{number:05d}.parquet")

    def info(_self, repo, **_):
        calls.append(repo)
        files = [types.SimpleNamespace(rfilename=file.name, lfs=types.SimpleNamespace(
            sha256=hashlib.sha256(file.read_bytes()).hexdigest())) for file in remote.iterdir()]
        return types.SimpleNamespace(sha="abc123", siblings=files, card_data={"license": "odc-by"})

    def download(_repo, file, *, revision, **_):
        calls.append((file, revision))
        return str(remote / file)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    return types.SimpleNamespace(remote=remote, calls=calls)


def test_the_last_shard_of_the_hub_is_validation_however_many_train(fake_hub):
    one, three = (corpus.load("climbmix", shards=shards) for shards in (1, 3))
    assert list(one.texts("val")) == list(three.texts("val")) == ["4-0", "4-1", "4-2"]
    assert len(list(three.texts("train"))) == 9
    assert (three.manifest["revision"], three.manifest["licence"]) == ("abc123", "odc-by")
    assert fake_hub.calls.count("karpathy/climbmix-400b-shuffle") == 1
    assert all(revision == "abc123" for _, revision in fake_hub.calls[1:])


def test_a_shard_with_other_content_is_refused(fake_hub):
    corpus.load("climbmix", shards=1)
    shutil.copy(fake_hub.remote / "shard_00001.parquet", fake_hub.remote / "shard_00000.parquet")
    with pytest.raises(ValueError, match=r"shard_00000\.parquet of karpathy/climbmix.* has not the sha256"):
        corpus.load("climbmix", shards=1)
    assert [call for call in fake_hub.calls if call[0] == "shard_00000.parquet"][-2:] == [
        ("shard_00000.parquet", "abc123")] * 2


def test_more_shards_than_there_are(fake_hub):
    with pytest.raises(ValueError, match="shards=5 is not between 1 and 4"):
        corpus.load("climbmix", shards=5)


def test_without_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"can't fetch karpathy/fineweb-edu.*use the corpus pydocs"):
        corpus.load("fineweb-edu", shards=1)
    assert not (Path(tmp_path) / "data").exists()
    assert hub.HUB.keys() == {"fineweb-edu", "climbmix"}
