# The embedded model on the embedded world, on a laptop's processor: `make demo` in the project root.
#   tunesmith data make nli data/demo
#   ./run_training.sh --native --config train/configs/demo.py
from train.configs.default import *

model_id = "nano-mistral"  # the small base model inside the package
train_data = "data/demo/train_ft.jsonl"
eval_data = "data/demo/eval_ft.jsonl"
output_dir = "models/nano-mistral-nli-cot"

num_epochs = 1
max_seq_length = 256
batch_size = 16
grad_accumulation_steps = 1
learning_rate = 2e-3  # a small model bears a higher rate
optim = "adamw_torch"  # nothing to page without a GPU
gradient_checkpointing = False  # there is memory enough

logging_steps = 20
eval_steps = 250
save_steps = 500
save_total_limit = 1

use_wandb = False
