# Ablation 1: only thoughts whose label was right.
#   tunesmith data prepare nli --thoughts ... --select correct --output data/finetune/correct
#   ./run_training.sh --config train/configs/ablation1.py
from train.configs.default import *

train_data = "data/finetune/correct/train_ft.jsonl"
eval_data = "data/finetune/correct/eval_ft.jsonl"
output_dir = "models/mistral-7b-nli-cot-ablation1"

num_epochs = 2
batch_size = 16
grad_accumulation_steps = 2  # 32 rows count together
warmup_ratio = 0.05  # a slightly longer start

wandb_name = "ablation1-correct-r16-lr2e4"
