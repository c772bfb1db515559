"""Jobs of a Slurm array, followed by their result files and `squeue`, with or without accounting.

submitit asks `sacct`, which many clusters lack. Without it a job that was cancelled, or killed by
the system, would be waited for without end.
"""

import subprocess
import time
from typing import Any

_ASK_SECONDS = 15.0  # between two questions to Slurm
_LOST_SECONDS = 60.0  # how long a shared folder may take to show the result of an ended job


class Array:
  """The jobs of an array that Slurm lists: those that wait, run, or end.

  Args:
    name: the array's job id.
  """

  def __init__(self, name: str):
    self.name = name
    self._jobs: set[str] | None = None
    self._asked = float("-inf")

  def lists(self, job: str) -> bool:
    """Whether Slurm lists a job; True as long as it does not answer."""
    if time.monotonic() - self._asked > _ASK_SECONDS:
      command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={self.name}"]
      answer = subprocess.run(command, capture_output=True, text=True, check=False)
      forgotten = "Invalid job id" in answer.stderr  # all have ended, a while ago
      self._jobs = set(answer.stdout.split()) if answer.returncode == 0 or forgotten else None
      self._asked = time.monotonic()
    return self._jobs is None or job in self._jobs


class Future:
  """A job: done once its result is there, or once Slurm has not listed it for a while.

  Args:
    job: submitit's.
    array: that it belongs to.
  """

  def __init__(self, job: Any, array: Array):
    self.job, self.array = job, array
    self._listed = time.monotonic()

  def done(self) -> bool:
    """Whether it has ended."""
    if self.job.paths.result_pickle.exists():
      return True
    if self.array.lists(self.job.job_id):
      self._listed = time.monotonic()
      return False
    return time.monotonic() - self._listed > _LOST_SECONDS

  def result(self) -> int:
    """The exit code of its command.

    Raises:
      RuntimeError: it left none, with the last that the job said.
    """
    paths = self.job.paths
    if not paths.result_pickle.exists():
      said = paths.stderr.read_text(errors="replace") if paths.stderr.exists() else ""
      said = (said.strip().splitlines() or ["nothing"])[-1]
      raise RuntimeError(f"Slurm ended job {self.job.job_id}; the end of {paths.stderr}: {said}")
    try:
      return self.job.result()
    except Exception as error:  # submitit's, with the trace of the job's between dashes
      trace = str(error).partition("-\n")[2].partition("\n---")[0] or str(error)
      raise RuntimeError(trace.strip().splitlines()[-1]) from error

  def cancel(self) -> None:
    """Cancels it, if it has not ended."""
    if not self.job.paths.result_pickle.exists():
      self.job.cancel(check=False)  # Slurm may have forgotten it
