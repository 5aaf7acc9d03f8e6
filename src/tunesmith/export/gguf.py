"""A merged model as one GGUF file, by llama.cpp's own converter; tunesmith writes no GGUF itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tunesmith.errors import ModelError

CONVERTER = "convert_hf_to_gguf.py"
HOME = "LLAMA_CPP"
"""Environment variable that names a checkout of llama.cpp."""


def find_converter() -> Path:
    """The converter: in the folder that ``LLAMA_CPP`` names, or on the path.

    Raises:
        ModelError: it is not installed.
    """
    home = os.environ.get(HOME)
    if home:
        if (Path(home) / CONVERTER).is_file():
            return Path(home) / CONVERTER
        raise ModelError(f"{HOME} names a folder without {CONVERTER}", where=home, remedy="name llama.cpp's folder")
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder and (Path(folder) / CONVERTER).is_file():
            return Path(folder) / CONVERTER
    raise ModelError(
        f"GGUF is written by llama.cpp's {CONVERTER}, which is neither on the path nor in ${HOME}",
        remedy=f"git clone https://github.com/ggml-org/llama.cpp, pip install gguf, and set {HOME} to the clone",
    )


def convert(model_folder: Path, output: Path, file_type: str) -> Path:
    """Convert a plain model in safetensors.

    Args:
        file_type: the converter's ``--outtype``: f32, f16, bf16, q8_0, ...

    Raises:
        ModelError: the converter is not installed, or fails.
    """
    converter = find_converter()
    part = output.with_name(f".{output.name}.part")
    command = [sys.executable, str(converter), str(model_folder), "--outfile", str(part), "--outtype", file_type]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not part.is_file():
        part.unlink(missing_ok=True)
        reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise ModelError(f"llama.cpp's converter failed ({reason})", where=str(converter))
    shutil.move(part, output)
    return output
