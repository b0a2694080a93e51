"""A process that is told to end takes its temporary files with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, time
from pathlib import Path
from tempfile import TemporaryDirectory
from sptrace import cli

@cli.app.command("sleep")
def sleep() -> None:
    with TemporaryDirectory() as folder:
        Path(folder, "large").write_text("x")
        print("ready", flush=True)
        time.sleep(60)

cli.main(["sleep"])
"""


def test_temporary_files_go_with_the_process(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(list(tmp_path.rglob("large"))) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) != 0
    assert list(tmp_path.rglob("large")) == []
