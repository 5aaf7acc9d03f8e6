# Ablation 2, the primary one: right thoughts, and for the wrong ones the thought improved on reflection.
#   tunesmith data prepare nli --thoughts ... --reflections ... --select reflected --output data/finetune/reflected
#   ./run_training.sh --config train/configs/ablation2.py
from train.configs.default import *

train_data = "data/finetune/reflected/train_ft.jsonl"
eval_data = "data/finetune/reflected/eval_ft.jsonl"
output_dir = "models/mistral-7b-nli-cot-ablation2"

num_epochs = 2
batch_size = 16
grad_accumulation_steps = 1  # 16 rows count together
learning_rate = 2e-4

wandb_name = "ablation2-reflected-r16-lr2e4"
