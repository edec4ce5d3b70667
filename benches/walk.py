#!/usr/bin/env python3
"""Records docs/walk.md anew: runs the page's commands one after another in an empty folder and writes down what they answer.

    python benches/walk.py --segft target/release/segft --page docs/walk.md

What a `prepared:` comment says is run before the block that follows it, unseen. Of a repeated table only the end is kept.
"""
import argparse
import datetime
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

# Lines of an answer that are kept when it is not the first table of its kind.
END = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segft", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    given = parser.parse_args()
    tables = 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "home").mkdir()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SEGFT_", "XDG_"))}
        environment["PATH"] = f"{given.segft.resolve().parent}:{environment['PATH']}"
        environment["HOME"] = f"{folder}/home"

        def run(command):
            begun = time.monotonic()
            answer = subprocess.run(
                command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            return answer.stdout.replace(environment["HOME"], "~").rstrip(), answer.returncode, time.monotonic() - begun

        def recorded(block):
            nonlocal tables
            for command in re.findall(r"prepared: (.*?) -->", block[1] or ""):
                answer, code, _ = run(command)
                assert code == 0, (command, answer)
            print(f"$ {block[2]}", flush=True)
            answer, code, seconds = run(block[2])
            lines = answer.splitlines()
            if any(line.startswith("mDice ") for line in lines):
                tables += 1
                lines = lines if tables == 1 else lines[-END:]
            return "\n".join([f"{block[1] or ''}```", f"$ {block[2]}", *lines, f"[exit {code}, {seconds:.1f} s]", "```\n"])

        text = given.page.read_text()
        text = re.sub(r"(<!-- prepared: [^\n]* -->\n)?```\n\$ ([^\n]*)\n.*?^```\n", recorded, text, flags=re.S | re.M)
    today = datetime.date.today()
    text = re.sub(r"Recorded on \d+ \w+ \d+", f"Recorded on {today.day} {today:%B %Y}", text)
    given.page.write_text(text)


if __name__ == "__main__":
    main()
