# A run that shows in minutes that everything works; the model learns little from it.
#   ./run_training.sh --config train/configs/minimal_test.py
from train.configs.default import *

output_dir = "models/mistral-7b-nli-cot-minimal-test"

lora_r = 8  # small adapters
lora_alpha = 16

num_epochs = 1
max_seq_length = 256  # longer rows are left out and counted
batch_size = 1
grad_accumulation_steps = 1

logging_steps = 1  # every step
eval_steps = 5
save_steps = 10
save_total_limit = 1

use_wandb = False  # needs no account
