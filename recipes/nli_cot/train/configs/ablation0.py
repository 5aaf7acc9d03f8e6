# Ablation 0, the baseline: one pass over the plain training file in small batches.
#   ./run_training.sh --config train/configs/ablation0.py
from train.configs.default import *

train_data = "data/finetune/train_ft.jsonl"  # e.g. `tunesmith data prepare nli --csv ...`: explanations written by people
output_dir = "models/mistral-7b-nli-cot-ablation0"

num_epochs = 1  # one look at every row
batch_size = 8
grad_accumulation_steps = 2  # 16 rows count together

wandb_name = "ablation0-baseline-r16-lr2e4"
