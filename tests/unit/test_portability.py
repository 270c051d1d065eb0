"""What only Linux has is used only where the platform is asked for first, or its absence is handled."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(file for folder in ("server", "model", "convert", "tests") for file in (ROOT / folder).rglob("*.py"))
FILES.remove(Path(__file__))
# Attributes of modules that macOS does not have.
LINUX_ONLY = {
    "os": r"sched_\w+|memfd_create|pidfd_open|posix_fallocate|posix_fadvise|eventfd\w*|splice|copy_file_range|unshare"
    r"|setns|getrandom|O_TMPFILE|O_PATH|O_DIRECT|getxattr|setxattr|setresuid|getresuid|pipe2|accept4",
    "resource": r"prlimit|RLIMIT_(SIGPENDING|NICE|MSGQUEUE|RTPRIO|RTTIME)",
    "select": r"epoll|EPOLL\w*",
    "signal": r"sigtimedwait|sigwaitinfo|pidfd_send_signal|SIGRT\w*|SIGPOLL|SIGSTKFLT|SIGPWR",
    "socket": r"SOCK_CLOEXEC|SOCK_NONBLOCK|AF_NETLINK|AF_ALG|AF_VSOCK|TCP_USER_TIMEOUT|TCP_QUICKACK|SO_PEERCRED",
    "fcntl": r"F_SETPIPE_SZ|F_GETPIPE_SZ|F_ADD_SEALS|F_NOTIFY",
    "time": r"CLOCK_BOOTTIME|clock_settime",
}
PATHS = re.compile(r"/(proc|sys)/|/dev/shm\b")
# Most files have none of these anywhere, and need no parsing.
ANYWHERE = re.compile("|".join([*LINUX_ONLY.values(), "RLIMIT_AS", PATHS.pattern]))


def linux_only(source: str) -> Iterator[tuple[int, str]]:
    """Line numbers of `source`, and what only Linux has there, unguarded. Scripts within strings are read too."""
    if ANYWHERE.search(source):
        yield from _unguarded(ast.parse(source), guarded=False)


def _unguarded(node: ast.AST, guarded: bool) -> Iterator[tuple[int, str]]:
    if not guarded and (found := _named(node)):
        yield node.lineno, found  # type: ignore[attr-defined]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and (script := _script(node.value)):
        yield from ((node.lineno + line - 1, found) for line, found in _unguarded(script, guarded))
    if isinstance(node, ast.If | ast.IfExp):
        guarded = guarded or _asks_for_platform(node.test)
    elif isinstance(node, ast.Try):
        # A call that fails where there is no such thing; what handles the failure is not guarded by it.
        handled = any(_handles_absence(handler) for handler in node.handlers)
        for statement in node.body:
            yield from _unguarded(statement, guarded or handled)
        for other in (*node.handlers, *node.orelse, *node.finalbody):
            yield from _unguarded(other, guarded)
        return
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        guarded = guarded or any(_asks_for_platform(decorator) for decorator in node.decorator_list)
    for _, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        left_early = False
        for child in children:
            if isinstance(child, ast.AST):
                yield from _unguarded(child, guarded or left_early)
                left_early = left_early or (
                    isinstance(child, ast.If)
                    and _asks_for_platform(child.test)
                    and isinstance(child.body[-1], ast.Return | ast.Raise)
                )


def _named(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        pattern = LINUX_ONLY.get(node.value.id)
        return f"{node.value.id}.{node.attr}" if pattern and re.fullmatch(pattern, node.attr) else None
    if isinstance(node, ast.ImportFrom):
        pattern = LINUX_ONLY.get(node.module or "")
        names = [name.name for name in node.names if pattern and re.fullmatch(pattern, name.name)]
        return f"{node.module}.{names[0]}" if names else None
    if isinstance(node, ast.Call) and "setrlimit" in (getattr(node.func, "attr", ""), getattr(node.func, "id", "")):
        return "setrlimit(RLIMIT_AS)" if "RLIMIT_AS" in ast.unparse(node) else None  # which macOS refuses
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and PATHS.match(node.value):
        return node.value
    return None


def _script(text: str) -> ast.Module | None:
    """Python that a test hands to another process."""
    if "\n" not in text:
        return None
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def _asks_for_platform(test: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.platform", "platform.system", "os.uname")
        for node in ast.walk(test)
    )


def _handles_absence(handler: ast.ExceptHandler) -> bool:
    kinds = ast.unparse(handler.type) if handler.type else "Exception"
    return bool(re.search(r"\b(OSError|FileNotFoundError|AttributeError|Exception)\b", kinds))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os\nos.sched_getaffinity(0)", [(2, "os.sched_getaffinity")]),
        ("from select import epoll", [(1, "select.epoll")]),
        ("Path('/proc/self/status').read_text()", [(1, "/proc/self/status")]),
        ("Path(f'/proc/{pid}/status').read_text()", [(1, "/proc/")]),
        ("SCRIPT = '''\nimport os\nopen('/proc/self/statm')\n'''", [(3, "/proc/self/statm")]),
        ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (1, 1))", [(2, "setrlimit(RLIMIT_AS)")]),
        ("try:\n    f()\nexcept OSError:\n    open('/proc/self/statm')", [(4, "/proc/self/statm")]),
        ("try:\n    open('/proc/self/statm')\nexcept ValueError:\n    pass", [(2, "/proc/self/statm")]),
        ("if sys.argv:\n    open('/sys/fs')", [(2, "/sys/fs")]),
        # Guarded:
        ("if sys.platform == 'linux':\n    os.sched_getaffinity(0)", []),
        ("def f():\n    if sys.platform != 'linux':\n        return\n    open('/proc/self/statm')", []),
        ("@pytest.mark.skipif(sys.platform != 'linux', reason='')\ndef f():\n    open('/proc/self/statm')", []),
        ("open('/proc/self/statm') if sys.platform == 'linux' else None", []),
        ("try:\n    open('/proc/cpuinfo')\nexcept OSError:\n    pass", []),
        # On macOS too:
        ("os.getpid()\nselect.select([], [], [])\nopen('/dev/fd/3')\nurl = 'https://host/proc/1'", []),
        ('"""Decoded in tests/process."""', []),
    ],
)
def test_what_only_linux_has_is_found_unless_the_platform_is_asked_for(source, found):
    assert list(linux_only(source)) == found


def test_no_file_uses_what_only_linux_has_without_asking_for_the_platform():
    found = [
        f"{file.relative_to(ROOT).as_posix()}:{line}: {what} is not on macOS"
        for file in FILES
        for line, what in linux_only(file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)
