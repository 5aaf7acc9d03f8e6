# The base of every run: ./run_training.sh
# Another file starts with `from train.configs.default import *` and sets what differs.
# `tunesmith config train/configs/default.py` shows every setting with the line it comes from.

# What is trained, and on what
model_id = "mistralai/Mistral-7B-v0.3"  # hub name or local folder of the base model
train_data = "data/finetune/train_ft.jsonl"  # made by `tunesmith data prepare nli`
eval_data = "data/finetune/eval_ft.jsonl"  # held-out rows; no premise of theirs is trained on
output_dir = "models/mistral-7b-nli-cot"  # adapter, tokenizer, logs and checkpoints
seed = 42  # decides the row order, dropout and the adapter's first values

# LoRA adapters on a base held in 4 bits (QLoRA)
lora_r = 16  # rank: how much an adapter can express
lora_alpha = 32  # scale of the adapters, twice the rank
lora_dropout = 0.05  # share of adapter inputs dropped while training
target_modules = ["q_proj", "k_proj", "v_proj", "o_proj"]  # the attention projections

# How long and how much at once
num_epochs = 2  # passes over the training rows
max_seq_length = 512  # tokens; a short chain of thought fits, and memory stays small
batch_size = 16  # rows of one forward pass on one device
grad_accumulation_steps = 2  # forward passes of one optimizer step: 32 rows count together
use_packing = False  # True lays several rows side by side in one sequence

# Optimization
learning_rate = 2e-4  # peak; adapters bear more than full fine-tuning does
lr_scheduler = "cosine"  # falls from the peak to 0 along half a cosine
warmup_ratio = 0.03  # share of the steps in which the rate rises from 0
warmup_steps = 0  # the same in steps; above 0 it beats the ratio
weight_decay = 0.01  # pulls adapter weights gently towards 0
max_grad_norm = 1.0  # gradients longer than this are scaled down
optim = "paged_adamw_8bit"  # AdamW with 8-bit state, which moves to main memory when the GPU is full
gradient_checkpointing = True  # computes activations again instead of keeping them: slower, much smaller

# Logging, evaluation, checkpoints (in optimizer steps)
logging_steps = 25  # loss, learning rate, gradient norm, speed
eval_steps = 250  # loss on eval_data
save_steps = 250  # a checkpoint to continue from
save_total_limit = 2  # older checkpoints are removed
early_stopping_patience = None  # a number stops after so many evaluations without improvement
resume_from_checkpoint = None  # a checkpoint folder, or "latest"

# Weights & Biases (WANDB_API_KEY in .env; --no_wandb switches it off)
use_wandb = True
wandb_project = "mistral7b-nli-cot"
wandb_name = None  # None: a name made from the model and the time
wandb_run_id = None  # continue an earlier run there

# Devices
gpu_id = None  # a number chooses one GPU; None sees all of them
distributed_training = False  # True trains on every visible GPU at once
