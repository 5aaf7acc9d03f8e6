"""Fine-tune a causal language model on reasoning rows: python -m training.trainers.model_trainer --help"""

import sys

from tunesmith.entrypoints.reasoning import ModelTrainer, ReasoningDataset, TrainingConfig, main

__all__ = ["ModelTrainer", "ReasoningDataset", "TrainingConfig"]

if __name__ == "__main__":
    sys.exit(main())
