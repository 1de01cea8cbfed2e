"""The loader: the same batches, prefetched, and no thread left however it ends."""

import itertools
import threading
from dataclasses import replace

import pytest
import torch

from tinylib import checkpoint
from tinylib.rundir import RunDirectory
from tinylib.shards import Batch, Loader, Shards
from tinylib.train import train


def batches(steps):
    return (Batch(step, rows=6, seq_len=16, seed=3) for step in steps)


@pytest.fixture
def shards(tiny_shards):
    return Shards(tiny_shards)


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    assert not [thread.name for thread in threading.enumerate() if "loader" in thread.name]


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("rows", [(None,), (range(2), range(4, 6)), ([5, 0],)])
def test_batches_are_those_of_the_shards(shards, rows):
    with Loader(shards, batches(range(5, 9)), rows=rows) as loaded:
        found = list(loaded)
        assert next(loaded, None) is None, "it ends once and for all"
    expected = [shards.batch(batch, chosen) for batch in batches(range(5, 9)) for chosen in rows]
    assert len(found) == len(expected) and all(map(same, found, expected))


@pytest.mark.timeout(60)
def test_it_may_be_left_early(shards):
    """At any moment: just started, with reads under way, with all of them done."""
    for attempt in range(50):
        with pytest.raises(KeyboardInterrupt), Loader(shards, batches(itertools.count())) as loaded:
            for _ in range(attempt % 5):
                next(loaded)
            if attempt % 2:
                loaded._thread.submit(int).result()    # after the reads
            raise KeyboardInterrupt


def test_it_reads_ahead_but_not_far(shards):
    taken = []

    def counted():
        for batch in batches(itertools.count()):
            taken.append(batch.step)
            yield batch

    with Loader(shards, counted()) as loaded:
        for step in range(4):
            next(loaded)
            assert taken == list(range(step + 3)), "two are read or under way while the caller works on one"


@pytest.mark.parametrize("error", [OSError("disk gone"), KeyboardInterrupt("twice")])
def test_errors_are_raised_where_the_batch_is_asked_for(shards, monkeypatch, error):
    read = shards.batch

    def fails(batch, rows):
        if batch.step == 2:
            raise error
        return read(batch, rows)

    monkeypatch.setattr(shards, "batch", fails)
    with Loader(shards, batches(range(9))) as loaded:
        assert same(next(loaded), read(next(batches([0]))))
        next(loaded)
        with pytest.raises(type(error), match=str(error)):
            next(loaded)
        assert next(loaded, None) is None


def test_rows_outside_the_batch_are_named(shards):
    with (pytest.raises(ValueError, match="rows go from 0 to 5"),
          Loader(shards, batches(range(3)), rows=[[6]]) as loaded):
        next(loaded)


def test_training_takes_the_batches_of_the_shards(tiny, tmp_path, monkeypatch):
    """The run is bit for bit the one that reads each batch when it is needed."""
    train(tiny)

    class Plain(Loader):
        def _prefetch(self, wanted):
            return (self._shards.batch(*each) for each in wanted)

    monkeypatch.setattr("tinylib.train.Loader", Plain)
    other = replace(tiny, run_dir=str(tmp_path / "plain"))
    train(other)
    one, two = RunDirectory(tiny.run_dir), RunDirectory(other.run_dir)
    first, second = (checkpoint.load_model(run.checkpoint()).state_dict() for run in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert one.metrics()["loss"].tolist() == two.metrics()["loss"].tolist()


def test_training_that_fails_leaves_no_thread(tiny, monkeypatch):
    with pytest.raises(FloatingPointError):
        train(replace(tiny, embedding_lr=1e39))
    monkeypatch.setattr(Shards, "batch", lambda *_, **__: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        train(replace(tiny, run_dir=tiny.run_dir + "2"))


@pytest.mark.gpu
def test_pinned_batches_copy_by_themselves(shards):
    with Loader(shards, batches(range(4)), pin=torch.device("cuda", 0)) as loaded:
        for batch, (x_BT, y_BT) in zip(batches(range(4)), loaded, strict=True):
            assert x_BT.is_pinned() and y_BT.is_pinned()
            there = [tensor.to("cuda", non_blocking=True) for tensor in (x_BT, y_BT)]
            assert same([one.cpu() for one in there], shards.batch(batch))
