"""Fine-tune a language model on questions and answers: python sft.py --help"""

import sys
from pathlib import Path

from tunesmith.entrypoints.sft import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))
