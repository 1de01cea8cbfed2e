"""The loader: the same batches, prepared ahead, and no thread left however it ends."""

import itertools
import threading
import time
from dataclasses import replace

import pytest
import torch

from tinylib import checkpoint
from tinylib.rundir import RunDirectory
from tinylib.shards import Loader, Shards
from tinylib.train import train

SIZE = {"batch_size": 6, "seq_len": 16, "seed": 3}


@pytest.fixture
def shards(tiny_shards):
    return Shards(tiny_shards)


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    assert not [thread.name for thread in threading.enumerate() if "loader" in thread.name]


@pytest.mark.parametrize("ahead", [1, 2, 7])
@pytest.mark.parametrize("rows", [(None,), (range(2), range(4, 6)), ([5, 0],)])
def test_batches_are_those_of_the_shards(shards, rows, ahead):
    with Loader(shards, range(5, 9), rows=rows, ahead=ahead, **SIZE) as batches:
        found = list(batches)
        assert next(batches, None) is None, "it ends once and for all"
    expected = [shards.batch(step, rows=chosen, **SIZE) for step in range(5, 9) for chosen in rows]
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for pair in zip(found, expected, strict=True) for one, other in zip(*pair,
                                                                                                        strict=True))


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("wait_s", [0, 0.05])
def test_it_may_be_left_early(shards, taken, wait_s):
    with pytest.raises(KeyboardInterrupt), Loader(shards, itertools.count(), **SIZE) as batches:
        for _ in range(taken):
            next(batches)
        time.sleep(wait_s)    # so that the thread waits for room
        raise KeyboardInterrupt


def test_it_reads_ahead_but_not_far(shards, monkeypatch):
    read, batch = [], shards.batch
    monkeypatch.setattr(shards, "batch", lambda step, **size: read.append(step) or batch(step, **size))
    with Loader(shards, itertools.count(), ahead=3, **SIZE) as batches:
        for taken in range(4):
            deadline = time.monotonic() + 10
            while len(read) < taken + 4:    # three ready, one in hand
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(0.01)
            assert read == list(range(taken + 4))
            next(batches)


@pytest.mark.parametrize("error", [OSError("disk gone"), KeyboardInterrupt("twice")])
def test_errors_are_raised_where_the_batch_is_asked_for(shards, monkeypatch, error):
    batch = shards.batch

    def fails(step, **size):
        if step == 2:
            raise error
        return batch(step, **size)

    monkeypatch.setattr(shards, "batch", fails)
    with Loader(shards, range(9), **SIZE) as batches:
        assert torch.equal(next(batches)[0], batch(0, **SIZE)[0])
        next(batches)
        with pytest.raises(type(error), match=str(error)):
            next(batches)
        assert next(batches, None) is None


def test_bad_arguments_are_named(shards):
    with pytest.raises(ValueError, match="ahead=0 is not a whole number of at least 1"):
        Loader(shards, range(3), ahead=0, **SIZE)
    with (pytest.raises(ValueError, match="rows go from 0 to 5"),
          Loader(shards, range(3), rows=[[6]], **SIZE) as batches):
        next(batches)


def test_training_takes_the_batches_of_the_shards(tiny, tmp_path, monkeypatch):
    """The run is bit for bit the one that reads each batch when it is needed."""
    train(tiny)

    class Slow(Loader):
        def __enter__(self):
            self._plain = (self._read(step, rows) for step in self._steps for rows in self._rows)
            return self

        def __next__(self):
            return next(self._plain)

        def __exit__(self, *failure):
            pass

    monkeypatch.setattr("tinylib.train.Loader", Slow)
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
    assert RunDirectory(tiny.run_dir + "2").status()["error"] == "OSError: disk gone"


@pytest.mark.gpu
def test_pinned_batches_copy_by_themselves(shards):
    with Loader(shards, range(4), pin=torch.device("cuda", 0), **SIZE) as batches:
        for step, (x_BT, y_BT) in enumerate(batches):
            assert x_BT.is_pinned() and y_BT.is_pinned()
            there = [tensor.to("cuda", non_blocking=True) for tensor in (x_BT, y_BT)]
            assert all(torch.equal(one.cpu(), other) for one, other in zip(there, shards.batch(step, **SIZE),
                                                                           strict=True))
