"""TensorBoard event files, read by TensorBoard's own reader, equal metrics.jsonl, also after a resume."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from tinylib.config import ConfigError
from tinylib.launch import launch
from tinylib.rundir import RunDirectory
from tinylib.train import train

installed = pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs pip install -e '.[tensorboard]'")


def scalars(directory):
    """Every scalar by name: its steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory.events), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {name: ([event.step for event in accumulator.Scalars(name)],
                   [event.value for event in accumulator.Scalars(name)]) for name in accumulator.Tags()["scalars"]}


def check_same(directory):
    """Assert that the event files and the metrics are equal, step by step."""
    found, compared = scalars(directory), 0
    for kind in ("step", "eval"):
        frame = directory.metrics(kind)
        for name in set(frame) - {"time_s", "tokens", "mfu"}:
            steps, values = found.pop(f"{kind}/{name}")
            assert steps == list(frame.index), name
            np.testing.assert_array_equal(np.float32(values), np.float32(frame[name]), err_msg=name)
            compared += len(steps)
    assert not found and compared


@installed
@pytest.mark.parametrize("kept", [[2, 4], []], ids=["from step 4", "from the start"])
def test_event_files_equal_the_metrics_also_after_a_resume(tiny, kept):
    config, directory = replace(tiny, tensorboard=True), RunDirectory(tiny.run_dir)
    train(config)
    check_same(directory)
    for step in set(directory.saved_steps()) - set(kept):
        shutil.rmtree(directory.checkpoint_path(step))
    train(config, resume=True)
    assert len(list(directory.events.iterdir())) == 2
    check_same(directory)


def test_no_event_files_by_default(tiny):
    train(replace(tiny, steps=1))
    assert not RunDirectory(tiny.run_dir).events.exists()


def test_a_missing_package_is_an_error_before_any_step(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = replace(tiny, tensorboard=True)
    with pytest.raises(ConfigError, match=r"tensorboard=True needs .*: pip install -e '\.\[tensorboard\]'"):
        launch(config)
    assert not RunDirectory(tiny.run_dir).path.exists()
    with pytest.raises(ConfigError, match="tensorboard=True"):
        train(config)
    assert not RunDirectory(tiny.run_dir).metrics_file.exists()
    assert train(replace(tiny, steps=1)).state == "finished"
