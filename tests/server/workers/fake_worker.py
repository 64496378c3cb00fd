"""A worker that serves nothing: it talks with its parent, and does as its orders say.

Usage: ``fake_worker.py CHANNEL ORDERS``, where the file ORDERS has a JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path


def main() -> None:
    channel, orders_path = int(sys.argv[1]), Path(sys.argv[2])
    orders = json.loads(orders_path.read_text("utf-8"))
    sock = socket.socket(fileno=channel)
    file = sock.makefile("rwb", buffering=0)
    seat = json.loads(file.readline())
    log = orders_path.with_name("log")

    def say(**message: object) -> None:
        file.write(json.dumps(message).encode() + b"\n")

    def note(what: str) -> None:
        with log.open("a", encoding="utf-8") as out:
            out.write(f"{what} {seat['number']} {os.getpid()}\n")

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if orders.get("fails"):
        say(failed=orders["fails"])
        sys.exit(3)
    if orders.get("is_slow"):
        note("hangs")
        time.sleep(600)
    note("ready")
    say(ready=True, pid=os.getpid())
    if orders.get("dies"):
        os._exit(7)
    for line in file:
        message = json.loads(line)
        note(message["do"])
        if message["do"] in ("stop", "drain") and not orders.get("is_deaf"):
            sys.exit(0)
        if message["do"] == "end" and not orders.get("is_deaf"):
            sys.exit(0)
        if message["do"] in ("ping", "report", "retry") and not orders.get("is_mute"):
            say(answers=message["n"], report=[seat["number"]])


main()
