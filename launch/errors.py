"""What programs say of errors that a user can mend: one message, and no traceback.

Exit codes: 2 after an error, 130 after a stop that saved (Ctrl-C, SIGTERM of a preemption), 3 where
a step failed on one of several processes, most often since another one has ended.
"""

import functools
import os
import re
import sys
from collections.abc import Callable

# XLA's errors begin with a status. Where a computation is dispatched they come as a ValueError.
_STATUS = re.compile("[A-Z_]+: ")
Main = Callable[[list[str]], int | None]


def in_one_message(main: Main) -> Callable[[list[str]], int]:
  """Wraps a program."""

  @functools.wraps(main)
  def wrapped(argv: list[str]) -> int:
    import jax  # not above: programs tune the host first

    from ltdd_jax.artefacts import checkpoint
    from ltdd_jax.core.types import LtddError

    try:
      return main(argv) or 0
    except LtddError as error:
      print(f"error: {error}", file=sys.stderr)
      return 2
    except checkpoint.Interrupted as stop:
      print(f"{stop}. Saved; give the same command again to go on.", file=sys.stderr)
      return 130
    except (jax.errors.JaxRuntimeError, ValueError) as error:
      of_xla = isinstance(error, jax.errors.JaxRuntimeError) or _STATUS.match(str(error))
      if jax.process_count() == 1 or not of_xla:
        raise
      print(
        f"error: process {jax.process_index()}: a step failed, most likely since another process "
        f"has ended: {str(error).splitlines()[0]}\nGive the same command on every host again: it "
        "goes on from the last checkpoint.",
        file=sys.stderr,
        flush=True,
      )
      os._exit(3)  # a common shutdown would wait for the process that is no more

  return wrapped
