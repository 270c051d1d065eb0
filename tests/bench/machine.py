"""What a comparison ran on."""

import os
import platform
import subprocess
from pathlib import Path


def description() -> dict[str, str | int | None]:
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}


def cpu_name() -> str:
    """As Linux or macOS names it; the architecture if neither does."""
    if platform.system() == "Darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return asked.stdout.strip() or platform.machine()
    try:
        return named_in(Path("/proc/cpuinfo").read_text(encoding="utf-8")) or platform.machine()
    except OSError:
        return platform.machine()


def named_in(cpuinfo: str) -> str:
    """The name in Linux's /proc/cpuinfo; empty where it has none, as on most ARM machines.

    Virtual machines may hide the model: family and model numbers tell which it is.
    """
    values = dict(line.split(":", 1) for line in cpuinfo.split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in values.items()}
    if "model name" not in fields:
        return ""
    numbers = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return fields["model name"] + numbers
