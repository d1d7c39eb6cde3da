"""The runner reports a panic of native code as the model's fault. Without a message it would be retried as a crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

from quant_engine.interface.spec import RunSpec
from quant_engine.policy import Calibration, Evaluation, Output, Policy, resolve_policy
from tests.source import ROOT
from tests.tiny_models import panicking_tokenizer, write_tiny_model
from worker.subprocesses.messages import RunFile


def test_a_tokenizer_that_panics_is_the_models_fault(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    (model / "tokenizer.json").write_text(json.dumps(panicking_tokenizer()))
    spec = RunSpec(
        model_dir=model,
        policy=resolve_policy(Policy(preset="w8a8")),
        calibration=Calibration(samples=8, sequence_length=32),
        evaluation=Evaluation(perplexity=None),
        output=Output(),
    )
    run_file = RunFile(
        job_id="job_1",
        parent_pid=os.getpid(),
        spec=spec,
        work_dir=tmp_path / "work",
        output_dir=tmp_path / "out",
        threads=1,
    )
    (tmp_path / "run.json").write_text(run_file.model_dump_json())
    reading, writing = os.pipe()
    with os.fdopen(reading) as events:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "worker.runner", str(tmp_path / "run.json"), "--events-fd", str(writing)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            pass_fds=(writing,),
            capture_output=True,
            check=False,
            timeout=120,
        )
        os.close(writing)
        told = [json.loads(line) for line in events]
    assert ended.returncode == 1
    error = told[-1]
    assert (error["type"], error["code"], error["category"]) == ("error", "invalid_model", "user")
