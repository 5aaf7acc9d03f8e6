# Ablation 3: every thought as it was written, the wrong ones too; more capacity, larger batches, a slower start.
#   tunesmith data prepare nli --thoughts ... --select all --output data/finetune/all
#   ./run_training.sh --config train/configs/ablation3.py
from train.configs.default import *

train_data = "data/finetune/all/train_ft.jsonl"
eval_data = "data/finetune/all/eval_ft.jsonl"
output_dir = "models/mistral-7b-nli-cot-ablation3"

lora_r = 32  # twice the rank, for more varied data
lora_alpha = 64

num_epochs = 2
batch_size = 16
grad_accumulation_steps = 4  # 64 rows count together
learning_rate = 1e-4  # half the rate: the labels are noisy
warmup_ratio = 0.10
max_grad_norm = 1.0  # noisy rows make long gradients

wandb_name = "ablation3-all-r32-lr1e4"
