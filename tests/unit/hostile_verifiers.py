"""Verifiers that misbehave in every way a completion can ask for. The completion says what happens."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from actors.prompts.prompt import Prompt


def obey(prompt: Prompt, completion: str) -> Any:
    """Does what the completion says; a number is returned as the reward."""
    action, _, argument = completion.partition(" ")
    match action:
        case "raise":
            raise RuntimeError(argument)
        case "return":
            return {"nan": float("nan"), "inf": float("inf"), "text": "1.0", "none": None, "true": True}[argument]
        case "parts":
            return json.loads(argument)
        case "exit":
            os._exit(int(argument))
        case "sys.exit":
            sys.exit(int(argument))
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            threading.Event().wait()
        case "regex":
            # Holds the interpreter lock: nothing in the process can interrupt it.
            re.match(r"(a+)+$", "a" * 64 + "b")
        case "spawn":
            child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
            Path(argument).write_text(str(child.pid))
            return 1
        case "print":
            print("1.0", flush=True)
            return 0.5
        case "pid":
            Path(argument).write_text(str(os.getpid()))
            return 1
    return float(action)
