"""The stand-in for torchaudio's extension, each time in a fresh interpreter."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_torchaudio_works_after_lincae_and_the_stub_is_there_only_when_needed():
    code = (
        "import lincae, sys\n"
        "assert not {'torchaudio', 'torch'} & set(sys.modules), 'lincae imports them at once'\n"
        "import torchaudio\n"
        "import torch\n"
        "from torchaudio.functional import melscale_fbanks, resample\n"
        "assert resample(torch.ones(1, 441), 441, 160).shape == (1, 160)\n"
        "assert melscale_fbanks(257, 0, 22050, 80, 44100, 'slaney', 'slaney').shape == (257, 80)\n"
        "extension = torchaudio._extension\n"
        "print(extension.__spec__.origin or 'stub', extension._IS_TORCHAUDIO_EXT_AVAILABLE)\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    try:
        for library in Path(importlib.util.find_spec("torchaudio").origin).parent.glob("lib/_torchaudio*.*"):
            torch.ops.load_library(str(library))
    except OSError:
        assert done.stdout.split() == ["stub", "False"]
    else:
        assert done.stdout.split()[-1] == "True"


def test_whatever_needs_the_extension_says_so():
    code = (
        "import torch\n"
        "def refuse(path): raise OSError('libcudart.so.13: cannot open shared object file')\n"
        "torch.ops.load_library = refuse\n"
        "import lincae, importlib.util\n"
        "assert importlib.util.find_spec('torchaudio._extension') is not None\n"
        "from torchaudio.functional import forced_align\n"
        "forced_align(torch.zeros(1, 2, 2), torch.zeros(1, 1))\n"
    )
    done = run(code)
    assert "RuntimeError: forced_align needs torchaudio's compiled extension" in done.stderr
