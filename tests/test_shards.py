"""Token shards: what is written is what is read, and the batch of a step is a pure function."""

import errno
import itertools
import json
import random
import shutil

import numpy as np
import pytest
import torch

from tinylib import files
from tinylib.checks import ConfigError
from tinylib.shards import IGNORED, Batch, Shards, build, permute
from tinylib.tokenizer import Tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "to", "see", "what", "dogs", "say", "of", "it"]


def sentences(count, seed=0):
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(0, 40))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(sentences(200), vocab_size=300)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "s"
    build({"train": sentences(60), "val": sentences(9, seed=1)}, tokenizer, folder, tokens_per_file=300)
    return folder


def stream(folder, split="train"):
    """The token files read without the class under test."""
    index = json.loads((folder / "index.json").read_text())
    return [np.fromfile(folder / file["name"], dtype=index["dtype"]) for file in index["splits"][split]["files"]]


def windows(shard, seq_len, steps, batch_size, seed=0):
    """The rows of `steps` batches as tuples of inputs and targets."""
    for step in range(steps):
        x, y = shard.batch(Batch(step, batch_size, seq_len, seed))
        yield from zip(map(tuple, x.tolist()), map(tuple, y.tolist()), strict=True)


def test_files_hold_the_documents_in_order(folder, tokenizer):
    expected = [number for text in sentences(60) for number in (tokenizer.bos, *tokenizer.encode(text))]
    files = stream(folder)
    assert len(files) > 3
    assert np.concatenate(files).tolist() == expected
    assert all(file[0] == tokenizer.bos for file in files)


def test_properties_count_the_text(folder, tokenizer):
    shard, texts = Shards(folder), sentences(60)
    assert shard.documents == 60
    assert shard.characters == sum(map(len, texts)) == shard.bytes
    assert shard.tokens == sum(map(len, stream(folder)))
    assert shard.vocab_size == tokenizer.vocab_size == 300
    assert shard.tokenizer.fingerprint == tokenizer.fingerprint
    assert Shards(folder, "val").documents == 9


def test_bytes_are_utf8_not_characters(tokenizer, tmp_path):
    shard = build({"train": ["é€", "a"]}, tokenizer, tmp_path / "s")
    assert (shard.characters, shard.bytes) == (3, 6)


@pytest.mark.parametrize("seq_len", [1, 7, 16, 299, 5000])
def test_every_token_but_a_files_first_is_a_target_once_an_epoch(folder, seq_len):
    shard = Shards(folder)
    expected = sorted(pair for file in stream(folder) for pair in itertools.pairwise(file.tolist()))
    seen = [pair for x, y in windows(shard, seq_len, shard.windows(seq_len), 1)
            for pair in zip(x, y, strict=True) if pair[1] != IGNORED]
    assert sorted(seen) == expected


def test_a_short_window_is_padded_with_0_and_ignored(folder):
    shard = Shards(folder)
    x, y = next(shard.in_order(5000))
    length = len(stream(folder)[0])
    assert x[0, :length - 1].tolist() == stream(folder)[0][:-1].tolist()
    assert set(x[0, length - 1:].tolist()) == {0} and set(y[0, length - 1:].tolist()) == {IGNORED}


@pytest.mark.parametrize("ranks,micro", [(1, 12), (2, 3), (3, 2), (4, 1)])
def test_ranks_and_micro_batches_slice_one_global_batch(folder, ranks, micro):
    shard, batch = Shards(folder), Batch(step=5, rows=12, seq_len=16)
    whole = shard.batch(batch)
    parts = [shard.batch(batch, range(start, start + micro))
             for rank in range(ranks) for start in range(rank * 12 // ranks, (rank + 1) * 12 // ranks, micro)]
    for side in (0, 1):
        assert torch.equal(torch.cat([part[side] for part in parts]), whole[side])


def test_rows_may_be_a_range_or_an_array(folder):
    shard, batch = Shards(folder), Batch(step=0, rows=6, seq_len=8)
    whole = shard.batch(batch)[0]
    assert torch.equal(shard.batch(batch, range(1, 6, 2))[0], whole[1::2])
    assert torch.equal(shard.batch(batch, np.array([4, 0]))[0], whole[[4, 0]])


def test_the_total_batch_size_does_not_change_the_order_of_samples(folder):
    shard = Shards(folder)
    assert list(windows(shard, 16, 12, 5)) == list(windows(shard, 16, 60, 1)) == list(windows(shard, 16, 1, 60))


def test_batches_straddle_epochs_and_each_epoch_is_whole_and_different(folder):
    shard = Shards(folder)
    count = shard.windows(16)
    assert count % 8
    rows = list(windows(shard, 16, 3 * count // 8 + 1, 8))[:3 * count]
    epochs = [rows[start:start + count] for start in range(0, 3 * count, count)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_may_be_larger_than_an_epoch(folder):
    shard = Shards(folder, "val")
    count = shard.windows(64)
    x, _ = shard.batch(Batch(1, 3 * count + 1, 64))
    assert x.shape == (3 * count + 1, 64)


def test_resuming_opens_anew_and_goes_on_alike(folder):
    batches = [Batch(step, 4, 16, seed=3) for step in range(20)]
    shard, resumed = Shards(folder), Shards(folder)
    straight = [shard.batch(batch) for batch in batches]
    for batch in batches[11:]:
        assert all(map(torch.equal, resumed.batch(batch), straight[batch.step]))


def test_the_seed_changes_the_order(folder):
    shard = Shards(folder)
    assert list(windows(shard, 16, 4, 4, seed=0)) != list(windows(shard, 16, 4, 4, seed=1))


def test_targets_counts_what_the_batch_holds(folder):
    shard = Shards(folder)
    for batch in (Batch(step, 5, 100) for step in range(12)):
        assert shard.targets(batch) == int((shard.batch(batch)[1] != IGNORED).sum())


def test_in_order_reads_the_files_in_order(folder):
    shard, expected = Shards(folder), [number for file in stream(folder) for number in file[1:].tolist()]
    batches = list(shard.in_order(16, batch_size=5))
    assert [number for _, y in batches for number in y[y != IGNORED].tolist()] == expected
    assert sum(len(x) for x, _ in shard.in_order(16, max_windows=7, batch_size=5)) == 7
    assert torch.cat([x for x, _ in shard.in_order(16, max_windows=7, batch_size=5)]).equal(
        torch.cat([x for x, _ in batches])[:7])


@pytest.mark.parametrize("seq_len", [1, 16, 100])
def test_batches_are_those_of_a_plain_reader(folder, seq_len):
    """The same sample by sample, from a list of all windows: what the vectorised reader must come to, bit for bit."""
    shard, seed = Shards(folder), 11
    every = [(file[start:start + seq_len + 1]) for file in stream(folder) for start in range(0, len(file) - 1, seq_len)]
    for step in (0, 1, 3 * len(every) // 7, 5000):
        x, y = shard.batch(Batch(step, 7, seq_len, seed))
        for row, sample in enumerate(range(step * 7, step * 7 + 7)):
            epoch, position = divmod(sample, len(every))
            place = permute(np.array([position]), len(every), seed=seed, epoch=epoch)[0]
            tokens = [*every[place].tolist()]
            padding = seq_len + 1 - len(tokens)
            assert x[row].tolist() == tokens[:-1] + [0] * padding
            assert y[row].tolist() == tokens[1:] + [IGNORED] * padding
    assert x.dtype == y.dtype == torch.int64 and x.is_contiguous() and y.is_contiguous()


def test_permute_takes_an_epoch_for_each_position():
    positions, epochs = np.arange(50) % 10, np.arange(50) // 10
    together = permute(positions, 10, seed=-3, epoch=epochs)
    assert together.tolist() == [place for epoch in range(5)
                                 for place in permute(np.arange(10), 10, seed=-3, epoch=epoch)]


@pytest.mark.parametrize("size", [*range(1, 35), 63, 64, 65, 127, 128, 129, 1000, 4097, 20_011])
def test_permute_is_a_bijection(size):
    assert np.array_equal(np.sort(permute(np.arange(size), size, seed=7, epoch=2)), np.arange(size))


def test_permute_never_changes():
    # Written down once: a run of today must be resumable for good.
    assert permute(np.arange(10), 10, seed=0, epoch=0).tolist() == [8, 5, 3, 1, 6, 7, 0, 4, 2, 9]
    last = 10**12 - 1
    assert permute(np.array([0, last]), last + 1, seed=-1, epoch=5).tolist() == [284_960_996_977, 683_699_719_869]


def test_permute_mixes():
    """Neighbours are scattered: their mean distance is that of two random places, a third of the size."""
    size = 10_000
    order = permute(np.arange(size), size, seed=0, epoch=0)
    assert np.abs(np.diff(order)).mean() == pytest.approx(size / 3, rel=0.05)
    firsts = [permute(np.arange(1), 8, seed=0, epoch=epoch)[0] for epoch in range(800)]
    assert np.bincount(firsts, minlength=8).min() > 60    # 100 expected, standard deviation 9.4


# Bad input


def test_missing_folder_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: run notebook 02, or python -m tinylib tokenize"):
        Shards(tmp_path / "nowhere")


def copy(folder, target):
    return shutil.copytree(folder, target / "copy")


def test_a_truncated_or_missing_file_is_an_error(folder, tmp_path):
    broken = copy(folder, tmp_path)
    (broken / "train_001.bin").write_bytes((broken / "train_001.bin").read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"train_001\.bin has \d+ bytes where \d+ were written"):
        Shards(broken)
    Shards(broken, "val")
    (broken / "train_001.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_001\.bin is missing"):
        Shards(broken)


def test_verify_reads_every_byte(folder, tmp_path):
    changed = copy(folder, tmp_path)
    Shards(changed).verify()
    tokens = np.memmap(changed / "train_001.bin", dtype="uint16", mode="r+")
    tokens[-1] ^= 1
    tokens.flush()
    shard = Shards(changed)    # the size is right, so opening sees nothing
    with pytest.raises(ValueError, match=r"train_001\.bin has sha256 .* was written: build the shards in .* again"):
        shard.verify()
    Shards(changed, "val").verify()


def test_an_index_of_another_version_is_an_error(folder, tmp_path):
    broken = copy(folder, tmp_path)
    index = json.loads((broken / "index.json").read_text())
    (broken / "index.json").write_text(json.dumps(index | {"version": 2}))
    with pytest.raises(ValueError, match="version=2 of the index is not 1: build the shards in"):
        Shards(broken)


def test_another_tokenizer_of_the_same_size_is_an_error(folder, tokenizer, tmp_path):
    """In the shards' folder, and wherever else a fingerprint comes from, such as a checkpoint."""
    other, broken = Tokenizer.train(sentences(200, seed=5), vocab_size=300), copy(folder, tmp_path)
    other.save(broken / "tokenizer")
    both = rf"{tokenizer.fingerprint}, .*tokenizer has {other.fingerprint}: build"
    with pytest.raises(ConfigError, match=both):
        _ = Shards(broken).tokenizer
    with pytest.raises(ConfigError, match=both):
        Shards(folder).check_tokenizer(other.fingerprint, "step_000200/tokenizer")
    Shards(folder).check_tokenizer(tokenizer.fingerprint, "step_000200/tokenizer")


@pytest.mark.parametrize("field,value", [("rows", 0), ("step", -1), ("seq_len", 0), ("rows", 2.5), ("step", True)])
def test_a_batch_checks_its_fields(field, value):
    with pytest.raises(ConfigError, match=f"Batch: {field}={value} "):
        Batch(**{"step": 0, "rows": 4, "seq_len": 8} | {field: value})


@pytest.mark.parametrize("rows", [range(3, 9), [-1], np.array([0, 4])])
def test_rows_outside_the_batch_are_an_error(folder, rows):
    with pytest.raises(ValueError, match="rows go from 0 to 3"):
        Shards(folder).batch(Batch(0, 4, 8), rows)


def test_unknown_split(folder):
    with pytest.raises(ValueError, match=r"split='test' is not in .*: splits are train, val"):
        Shards(folder, "test")


def test_tiny_corpora_work_or_say_why_not(tokenizer, tmp_path):
    one = build({"train": ["a"]}, tokenizer, tmp_path / "one")
    x, y = one.batch(Batch(9, 3, 8))
    assert x[:, 0].tolist() == [tokenizer.bos] * 3 and (y != IGNORED).sum() == 3
    empty = build({"train": [""]}, tokenizer, tmp_path / "empty")
    assert (empty.tokens, empty.windows(8), list(empty.in_order(8))) == (1, 0, [])
    with pytest.raises(ValueError, match="holds 1 tokens and so no target"):
        empty.batch(Batch(0, 1, 8))
    assert build({"train": ["", "", "a", ""]}, tokenizer, tmp_path / "few").documents == 4


def test_a_split_without_documents_leaves_nothing(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="split 'val' has no documents"):
        build({"train": ["a"], "val": []}, tokenizer, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_build_that_fails_leaves_what_was_there(folder, tokenizer, tmp_path, failure):
    def texts():
        yield from sentences(50)
        raise failure

    with pytest.raises(type(failure)):
        build({"train": texts()}, tokenizer, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    before = build({"train": ["old"]}, tokenizer, tmp_path / "s")
    with pytest.raises(type(failure)):
        build({"train": texts()}, tokenizer, tmp_path / "s")
    assert [file.name for file in tmp_path.iterdir()] == ["s"]
    assert Shards(tmp_path / "s").fingerprint == before.fingerprint


def test_building_again_replaces_and_sweeps_up_after_the_dead(tokenizer, tmp_path):
    dead = tmp_path / ".s.old.999999999.part"
    dead.mkdir()
    (dead / "half.bin").write_bytes(b"half")
    first = build({"train": ["one"]}, tokenizer, tmp_path / "s")
    second = build({"train": ["two"]}, tokenizer, tmp_path / "s")
    assert first.fingerprint != second.fingerprint
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_write_folder_is_atomic(tmp_path):
    with pytest.raises(RuntimeError, match="no"), files.write_folder(tmp_path / "a" / "b", []) as part:
        (part / "file").write_text("half")
        raise RuntimeError("no")
    assert list((tmp_path / "a").iterdir()) == []


def test_large_vocabularies_take_uint32(tmp_path):
    class Wide(Tokenizer):
        vocab_size = 65_537

    wide = Wide([bytes([value]) for value in range(256)])
    shard = build({"train": ["ab"]}, wide, tmp_path / "s")
    assert shard.index["dtype"] == "uint32" and shard.tokens == 3
    assert shard.batch(Batch(0, 1, 2))[1].tolist() == [[97, 98]]
