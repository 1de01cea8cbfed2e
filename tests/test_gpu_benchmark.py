"""The benchmark for the first hour on a GPU runs to its end on a CPU, and a part that fails doesn't end it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def benchmark(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run([sys.executable, str(SCRIPT), "--tiny", "--out", str(out), *arguments], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.stdout)
    return done.returncode, json.loads(out.read_text())


@pytest.mark.slow
def test_every_part_runs_to_its_end(tmp_path: Path) -> None:
    code, found = benchmark(tmp_path / "gpu.json")
    assert code == 0 and [part for part in found if "error" in found[part]] == []
    assert "skipped" in found["tests"]["summary"] and "passed" not in found["tests"]["summary"]
    assert [(row["context"], row["tied"]) for row in found["step"]["rows"]] == [
        (32, False), (32, True), (64, False), (64, True)]
    shares = {row["class"]: row["share"] for row in found["kernels"]["rows"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert {"matrix products", "attention", "optimizer", "loss"} <= set(shares)
    assert found["run"]["states"] == ["stopped", "finished"] and found["run"]["val_bpb"] > 0
    assert found["nanochat"]["skipped"]    # it needs a checkout
    assert {row["dtype"] for row in found["evaluate"]["rows"]} == {"float32", "bfloat16"}
    assert [row["batch"] for row in found["decode"]["rows"]] == [1, 1, 64]


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    code, found = benchmark(tmp_path / "gpu.json", "--parts", "nanochat", "decode", "--nanochat", str(tmp_path))
    assert code == 1 and "no nanochat/gpt.py" in found["nanochat"]["error"] and found["nanochat"]["traceback"]
    assert len(found["decode"]["rows"]) == 3


def event(name: str, start: float, end: float, annotation: bool = False, device: DeviceType = DeviceType.CUDA) -> Any:
    """What the profiler gives of a kernel, or of an annotation, on a GPU."""
    return SimpleNamespace(name=name, device_type=device, is_user_annotation=annotation, self_cpu_time_total=0.0,
                           time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start))


def test_kernels_of_a_gpu_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from gpu_kernels import by_class

    events = [
        event("aten::mm", 0, 900, device=DeviceType.CPU), event("loss", 10, 50, annotation=True),
        event("Optimizer.step#Muon.step", 60, 100, annotation=True), event("Memcpy HtoD (Pinned -> Device)", 0, 2),
        event("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits>", 2, 6),
        event("triton_poi_fused__to_copy_t_3", 6, 7), event("triton_red_fused__to_copy_add_exp_mul_sum_2", 12, 20),
        event("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_NTT", 18, 30),
        event("triton_poi_fused__scaled_dot_product_flash_attention_backward_cat_neg_7", 50, 55),
        event("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>", 60, 70)]
    found = by_class(events, steps=1, on_gpu=True)
    assert {row["class"]: round(1000 * row["ms"]) for row in found["rows"]} == {
        "copies and casts": 3, "attention": 4, "loss": 8, "matrix products": 12, "norms, elementwise, other": 5,
        "optimizer": 10, "idle between kernels": 5 + 20 + 5}
    assert found["longest"][0]["name"].startswith("nvjet")
