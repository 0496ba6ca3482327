"""Start of the child process: begin a new session, print the process ID, then run the worker.

Slicer starts Python through a launcher, so the process that Slicer knows is not the one that computes. Ending the
computation with everything it started needs the ID of the process group.
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
    # Print where a crash happened; the launcher reports all ends by a signal alike. Use a duplicate of stderr: stderr
    # itself leads nowhere while ITK reads.
    faulthandler.enable(os.dup(2))
    if hasattr(os, "setsid"):
        with contextlib.suppress(PermissionError):  # already leads a group
            os.setsid()
    print(json.dumps({"event": "process", "pid": os.getpid()}), flush=True)
    sys.path[0] = folder  # instead of this file's folder, which holds the panel's modules
    sys.argv[:] = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
