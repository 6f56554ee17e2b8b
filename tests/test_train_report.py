"""The report's own arithmetic, and the log's files."""

import json

import numpy as np

from inrun.train.log import JsonLines, read_lines
from inrun.train.report import within_step


def test_rank_within_a_step_knows_nothing_of_other_steps():
    scores = np.array([5.0, -1.0, 100.0, 300.0, 200.0, 7.0])
    step = np.array([0, 0, 1, 1, 1, 2])
    assert within_step(scores, step).tolist() == [1.0, 0.0, 0.0, 1.0, 0.5, 0.5]
    assert within_step(scores * 1e-6, step).tolist() == within_step(scores, step).tolist()


def test_log_drops_what_is_past_the_checkpoint_and_a_line_that_a_kill_cut_off(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"iter": k}) + "\n" for k in range(5)) + '{"iter": 5, "tra')
    assert [row["iter"] for row in read_lines(path)] == [0, 1, 2, 3, 4]
    lines = JsonLines(path, "iter", last=2)
    lines.write({"iter": 3, "again": True})
    lines.close()
    assert read_lines(path) == [{"iter": 0}, {"iter": 1}, {"iter": 2}, {"iter": 3, "again": True}]
