# One process for every visible GPU, each with its own rows.
#   ./run_training.sh --config train/configs/distributed.py --all-gpus
#   torchrun --nproc_per_node 2 train/train_sft.py --config train/configs/distributed.py
from train.configs.default import *

output_dir = "models/mistral-7b-nli-cot-distributed"

num_epochs = 3
batch_size = 8  # rows of one forward pass on each GPU
grad_accumulation_steps = 2  # 16 rows times the number of GPUs count together
learning_rate = 2e-4

distributed_training = True

wandb_name = "distributed-r16-lr2e4"
