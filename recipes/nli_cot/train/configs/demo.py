# The embedded model on the embedded world, on a laptop's processor. `make demo` runs this from the project's root:
#   tunesmith data make nli demo/data
#   tunesmith train recipes/nli_cot/train/configs/demo.py
from train.configs.default import *

model_id = "nano-mistral"  # the small base model inside the package
train_data = "demo/data/train_ft.jsonl"
eval_data = "demo/data/eval_ft.jsonl"
output_dir = "demo/run"

num_epochs = 1
max_seq_length = 256
batch_size = 16
grad_accumulation_steps = 1
learning_rate = 4e-3  # a small model bears a higher rate
lora_dropout = 0.0  # nothing to regularise: one pass over generated rows
optim = "adamw_torch"  # nothing to page without a GPU
gradient_checkpointing = False  # there is memory enough

logging_steps = 20
eval_steps = 250
save_steps = 500
save_total_limit = 1

use_wandb = False
