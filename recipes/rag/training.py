"""Fine-tune a causal language model on processed retrieval rows: python training.py --help"""

import sys
from pathlib import Path

from tunesmith.entrypoints.rag import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))
