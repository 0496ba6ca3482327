"""First lines of the child process: start a session of its own, print its process ID, then become the worker.

Slicer starts Python through a launcher, so that the process which Slicer knows is not the one that computes. Whoever
wants to end the computation with everything it started needs the number of the process group.
"""

import contextlib
import faulthandler
import json
import os
import runpy
import sys


def main() -> None:
    """Arguments: the folder to import from, the module to run."""
    folder, module = sys.argv[1:3]
    # A crash says where it was; the launcher would tell it from no other end by a signal. To a stream of its own: while
    # ITK reads, the usual one leads nowhere.
    faulthandler.enable(os.dup(2))
    if hasattr(os, "setsid"):
        with contextlib.suppress(PermissionError):  # it leads a group already
            os.setsid()
    print(json.dumps({"event": "process", "pid": os.getpid()}), flush=True)
    sys.path[0] = folder  # not this file's own, whose modules are the panel's
    sys.argv[:] = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
