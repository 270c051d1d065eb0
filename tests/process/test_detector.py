"""What the speech detector costs the process that uses it."""

import subprocess
import sys


def test_frames_are_computed_in_the_calling_thread_alone():
    code = (
        "import time, numpy as np\n"
        "from server.audio.vad import SpeechDetector\n"
        "detector = SpeechDetector()\n"
        "def share():\n"
        "    process, thread = time.process_time(), time.thread_time()\n"
        "    for _ in range(500): detector.feed(np.zeros(1024, np.float32))\n"
        "    return (time.process_time() - process) / (time.thread_time() - thread)\n"
        "print(min(share() for _ in range(5)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    # Processor time of the process over that of the thread: a pool's other threads would work, or wait and spin.
    # The smallest of five, since a thread that is just starting or ending takes some of its own.
    assert float(done.stdout) < 1.1


def test_importing_the_detector_loads_neither_the_runtime_nor_torch():
    code = (
        "import sys, numpy as np\n"
        "from server.audio.vad import SpeechDetector\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "SpeechDetector().feed(np.zeros(512, np.float32))\n"
        "assert 'onnxruntime' in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
