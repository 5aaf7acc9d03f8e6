"""Fine-tune on NLI chain-of-thought data: python train/train_sft.py [--config FILE] [--name value ...]"""

import sys
from pathlib import Path

from tunesmith.entrypoints.nli import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).with_name("configs") / "default.py"))
