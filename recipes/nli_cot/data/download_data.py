"""Download a data set into data/NAME: python data/download_data.py [snli | esnli | ...]   (esnli without a name)"""

import sys
from pathlib import Path

from tunesmith.cli.data import download_main

if __name__ == "__main__":
    sys.exit(download_main(Path(__file__).parent))
