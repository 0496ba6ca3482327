"""A worker that does not compute: it says what it is told to, and misbehaves at the stage it is told to.

The variable SAUNET_FAKE holds JSON: labels (file to copy), summary (the result event), behaviour, stage.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

STAGES = ("load", "read", "prepare", "segment", "levels", "write")
plan = json.loads(os.environ["SAUNET_FAKE"])
cancelled = threading.Event()


def say(**event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def misbehave(identity):
    behaviour = plan["behaviour"]
    if behaviour == "wait":  # as a well-behaved worker in a long stage
        cancelled.wait(30)
    elif behaviour == "hang":  # ignores everything, even SIGTERM
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(f"child {child.pid}", file=sys.stderr, flush=True)
        cancelled.clear()
        time.sleep(60)
    elif behaviour == "killed":
        if os.name == "nt":
            os._exit(137)
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif behaviour == "raises":
        threading.excepthook = lambda args: os._exit(1)
        raise ValueError("exit code 1, as of any Python program that fails")
    elif behaviour == "dies":
        sys.stderr.write("Traceback\nValueError: the last words")
        sys.stderr.flush()
        os._exit(3)
    elif behaviour == "rubbish":
        sys.stdout.write(
            '{"event": "progress", \nnot JSON at all\n{"event": "unknown"}\n{"event": "process", "pid": 1}\n'
        )
        sys.stdout.write('[1]\n{"a": 1}\n' + "x" * 3_000_000 + "\n")
        sys.stdout.buffer.write(b"\xff\xfe\n{}\n")
        sys.stdout.flush()
    elif behaviour == "memory":
        say(event="error", id=identity, code=plan.get("code", "MEMORY"), title="Not enough memory",
            cause="the main memory is full.", remedy="Close other programs.", exit_status=5)  # fmt: skip
        return False
    elif behaviour == "bug":
        say(event="error", id=identity, code="INTERNAL", title="Failure", cause="CUDA error: launch failure.",
            remedy="Report it.", exit_status=1)  # fmt: skip
        return False
    elif behaviour == "no file":
        say(event="result", id=identity, output="", **plan["summary"])
        return False
    return True


def segment(request):
    for stage in STAGES:
        say(event="progress", id=request["id"], stage=stage, fraction=0.0)
        if stage == plan.get("stage") and not misbehave(request["id"]):
            return
        if cancelled.is_set():
            say(
                event="error", id=request["id"], code="CANCELLED", title="Cancelled", cause="", remedy="", exit_status=6
            )
            return
        say(event="progress", id=request["id"], stage=stage, fraction=1.0)
    record = plan.get("record")
    if record:
        Path(record).write_text(
            json.dumps({"request": request, "files": [path.name for path in Path(request["image"]).parent.iterdir()]})
        )
        shutil.copy(request["image"], record + ".nrrd")
    shutil.copy(plan["labels"], request["output"])
    say(event="result", id=request["id"], output=request["output"], **plan["summary"])


def main():
    say(event="ready", version="0")
    requests = []
    arrived = threading.Condition()

    def listen():
        for line in sys.stdin:
            request = json.loads(line)
            if request["command"] == "cancel":
                cancelled.set()
            else:
                with arrived:
                    requests.append(request)
                    arrived.notify()
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        with arrived:
            while not requests:
                arrived.wait()
            request = requests.pop(0)
        cancelled.clear()
        if request["command"] == "warm":
            if plan["behaviour"] == "cold":  # as while torch is imported: it reads no request
                time.sleep(60)
            say(event="result", id=request["id"], command="warm")
        else:
            segment(request)


if __name__ == "__main__":
    main()
