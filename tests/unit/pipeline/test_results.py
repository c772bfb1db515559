"""What made a row of the report: seconds, hardware and commits of the stages that it needs."""

from ltdd_jax.pipeline import results


def stage(seconds, *inputs, revision="a" * 40, dirty=False, **other):
  code = {"revision": revision, "dirty": dirty}
  return {"seconds": seconds, "inputs": dict.fromkeys(inputs, ""), "code": code} | other


def test_a_row_counts_the_stages_that_it_needs():
  metas = {
    "data": stage(1.0, hardware="1 cpu"),
    "teacher": stage(10.0, "data", hardware="1 H100"),
    "distil/x": stage(100.0, "data", "teacher", hardware="1 H100", dirty=True),
    "distil/y": stage(1e3, "data", "teacher", hardware="8 TPU v4"),
    "student/x": stage(1e4, "distil/x", "data", hardware="1 H100"),
  }
  assert results.made_by(metas, "student/x") == {
    "seconds": 10111.0,
    "hardware": "1 cpu, 1 H100",
    "commit": "aaaaaaaaaaaa, aaaaaaaaaaaa-dirty",
  }


def test_what_older_versions_did_not_record_is_said():
  metas = {"student/x": stage(2.0) | {"code": None}}
  found = results.made_by(metas, "student/x")
  assert found == {"seconds": 2.0, "hardware": "unknown", "commit": "unknown"}
