"""TRL's SFTTrainer with finished examples, the loss of ``loss.py``, checked numbers and committed checkpoints.

Together with ``arguments.py`` and ``upstream.py`` this is all that knows Trainer and TRL names; the latter tells why
each hook is overridden, and refuses libraries that do not call it any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DistributedType
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import CallbackHandler
from typing_extensions import override

from tunesmith.config.strategy import Strategy
from tunesmith.data.batching import FilledSampler, LengthGroupedSampler
from tunesmith.data.families import FamilySampler
from tunesmith.errors import ModelError, NumericsError
from tunesmith.evaluate import loss as losses_of
from tunesmith.evaluate.loss import keeps_logits, label_weight, row_totals, token_figures, token_losses
from tunesmith.evaluate.untouched import untouched
from tunesmith.model.head import Head
from tunesmith.model.layout import Layout
from tunesmith.report import belongings
from tunesmith.train import checkpoint, fsdp, space
from tunesmith.train.balance import Balance
from tunesmith.train.finite import FiniteSteps
from tunesmith.train.lean_trl import SFTConfig
from tunesmith.train.resuming import ResumingTrainer
from tunesmith.train.upstream import base_of, check_overrides, constructed

GenerationMetrics = Callable[[torch.nn.Module, int, dict[str, float]], dict[str, float]]
"""Generates answers with the model as it is after a step and scores them; given are also the figures of its tokens."""


@dataclass
class Arguments(SFTConfig):
    """SFTConfig of a process that computes on one device, which need not be the first one that it sees; transformers
    takes cuda:0 and replicates the model over all visible ones. Several are used only by a model laid over them."""

    device_index: int = 0
    """Number of the CUDA device among the visible ones; in a run of several processes accelerate gives each its own."""

    @cached_property
    @override
    def _setup_devices(self) -> torch.device:
        device: torch.device = super()._setup_devices
        self._n_gpu = min(self._n_gpu, 1)
        if device.type != "cuda" or self.distributed_state.distributed_type != DistributedType.NO:
            return device
        device = torch.device("cuda", self.device_index)
        torch.cuda.set_device(device)
        self.distributed_state.device = device  # accelerate compares it with where quantized weights are
        return device


class Trainer(ResumingTrainer):
    """Trains on examples whose labels are decided already.

    Args:
        eval_collator: collator of evaluation batches, which keep one row per example.
        generation_metrics: scores generated answers at evaluations; None leaves generation out.
        generate_every: generate at every k-th evaluation.
        keep_checkpoints: checkpoints kept, or None for all.
        loraplus_lr_ratio: learning rate of LoRA's B over that of A, or None.
        router_aux_loss_coef: factor of the loss that balances experts, or None.
        complete_checkpoint: adds to a checkpoint's folder what else it should hold.
        **keywords: as for SFTTrainer.
    """

    def __init__(
        self,
        *,
        eval_collator: Callable[[list[Any]], Any],
        generation_metrics: GenerationMetrics | None = None,
        generate_every: int = 1,
        keep_checkpoints: int | None = None,
        loraplus_lr_ratio: float | None = None,
        router_aux_loss_coef: float | None = None,
        complete_checkpoint: Callable[[Path], None] = lambda folder: None,
        **keywords: Any,
    ) -> None:
        check_overrides(Arguments)
        check_overrides(ResumingTrainer, sets=["_tr_loss", "_globalstep_last_logged"])
        check_overrides(Trainer, sets=["model_accepts_loss_kwargs"])
        with constructed(keywords["model"]):
            super().__init__(**keywords)
        self._eval_collator = eval_collator
        self._generation_metrics = generation_metrics
        self._generate_every = generate_every
        self._keep_checkpoints = keep_checkpoints
        self._loraplus_lr_ratio = loraplus_lr_ratio
        self._complete_checkpoint = complete_checkpoint
        self.balance = Balance(base_of(self.model), router_aux_loss_coef)
        self._chosen_positions = keeps_logits(base_of(self.model))
        # compute_loss divides by the tokens of the whole step, so the trainer must neither divide again nor keep the
        # count to itself (the accumulation fault of 2024).
        self.model_accepts_loss_kwargs = True
        self.layout = Layout("padded", "nothing else was settled")
        self.head: Head | None = None
        self.step_origins: list[str] = []
        self.batch_shape: tuple[int, int] | None = None
        self._step_loss: torch.Tensor | None = None
        self._finite = FiniteSteps(self.args.device, self._resumable)
        self._tokens: torch.Tensor | int = 0
        self._tokens_since = time.perf_counter()

    @override
    def create_accelerator_and_postprocess(self) -> None:
        with fsdp.possible_on_cpu() if self.args.fsdp else nullcontext():
            super().create_accelerator_and_postprocess()

    @override
    def _prepare_for_training(self, *args: Any, **keywords: Any) -> Any:
        with fsdp.handing_out(self.model) if fsdp.accelerate_hands_out(self.accelerator) else nullcontext():
            return super()._prepare_for_training(*args, **keywords)

    def check_strategy(self, strategy: Strategy) -> None:
        """Refuse a run whose libraries took another strategy than was asked for.

        Raises:
            ModelError: they did.
        """
        taken = "fsdp2" if self.is_fsdp_enabled else "ddp"
        if self.is_deepspeed_enabled:
            taken = f"zero{self.accelerator.state.deepspeed_plugin.zero_stage}"
        if taken != strategy.name:
            raise ModelError(f"the strategy is {strategy.name}, and the libraries took {taken}", where=strategy.origin)

    def check_callbacks(self) -> None:
        """Refuse libraries that do not call what ours among the callbacks override.

        Raises:
            ModelError: they do not.
        """
        for callback in self.callback_handler.callbacks:
            check_overrides(type(callback), callers=[transformers.Trainer, CallbackHandler])

    # ---- training ----

    @override
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Rows of like lengths or beginnings together, where that was asked for; else transformers' random order.

        Rows of length 0 only fill the last batches up, see ``dataset.to_dataset``.
        """
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "sequential":
            return super()._get_train_sampler(rows)
        columns = rows.with_format(None)
        lengths = columns[self.args.length_column_name][:]  # a slice: iterating makes a dictionary of each row
        number = len(lengths) - lengths.count(0)
        if "family" in rows.column_names:
            related = columns["family"][:number]
            sampler: Any = FamilySampler(related, self.args.train_batch_size, self.args.data_seed)
        elif self.args.train_sampling_strategy == "group_by_length":
            sampler = LengthGroupedSampler(lengths[:number], self.args.train_batch_size, self.args.data_seed)
        elif number == len(lengths):
            return super()._get_train_sampler(rows)
        else:  # the one that accelerate puts in the place of transformers'
            sampler = SeedableRandomSampler(range(number), generator=torch.Generator(), data_seed=self.args.data_seed)
        return sampler if number == len(lengths) else FilledSampler(sampler, len(lengths))

    @override
    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The batches of one optimizer step and the number of labelled tokens in them, over all processes."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_origins = [origin for batch in batches for origin in batch.pop("origins")]
        for batch in batches:
            mask = batch.get("attention_mask")
            self._tokens = self._tokens + (batch["input_ids"].numel() if mask is None else mask.sum())
        return batches, num_items

    @override
    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        """Weight of all labelled tokens of one step, over all processes; without weights that is their number."""
        if not batch_samples:
            return None
        weight = sum(label_weight(batch["labels"], batch.get("weights")).to(device) for batch in batch_samples)
        weight = torch.as_tensor(weight, device=device)
        if self.args.world_size > 1:
            weight = self.accelerator.gather(weight).sum()
        return weight / (self.get_tp_size() * self.get_cp_size() * self.get_sp_size())

    @override
    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Summed loss of the labelled tokens over their weight in the whole step (all batches, all processes)."""
        inputs = dict(inputs)
        labels, weights = inputs.pop("labels"), inputs.pop("weights", None)
        rows, length = labels.shape
        self.batch_shape = (rows, length)
        positions = inputs.pop("predicting", None)
        inputs |= self.balance.asked()
        if self.head is None or positions is None:
            losses = token_losses(model, inputs, labels, weights, chosen_positions=self._chosen_positions)
        else:
            losses = losses_of.labelled_losses(model, inputs, labels, weights, positions, self.head)
        total = losses.weight.sum() if num_items_in_batch is None else num_items_in_batch
        total = torch.as_tensor(total).to(losses.nll)
        total = total + (total == 0)
        loss = losses.nll.sum() / total + self.balance.loss(losses.weight.sum() / total).to(losses.nll)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return loss.to(self.args.device)  # a model that is spread over devices may end on another one

    @override
    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch, unless the checkpoint that is continued was the last one: a step more would train past the end."""
        stopping = [one for one in self.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
        stopped = any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in stopping)
        if stopped or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        return loss

    @override
    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The gradient norm; a loss or gradient that is not finite ends the run, see ``finite.py``."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        loss, self._step_loss = self._step_loss, None
        if loss is not None:
            skips = self.args.fp16 and not self._scaler_at_floor()  # steps whose gradients overflow, and goes lower
            self._finite.note(self.state.global_step + 1, self.step_origins, loss, 0.0 if skips else grad_norm)
        return grad_norm

    def _scaler_at_floor(self) -> bool:
        """Whether the loss scaler has been halved so often that what still overflows is no matter of its scale."""
        scaler = self.accelerator.scaler
        return scaler is not None and float(scaler.get_scale()) <= 1

    def _resumable(self) -> str:
        """Words for the newest complete checkpoint; none where there is none."""
        for found in reversed(checkpoint.list_checkpoints(Path(self.args.output_dir))):
            if (found.path / checkpoint.MANIFEST).is_file():
                return f", and {found.path.name} can be resumed"
        return ""

    @torch.no_grad()
    def check_weights(self) -> None:
        """Refuse weights that are not finite, or steps. All processes must call this, each of which looks at its part.

        Raises:
            NumericsError: with the name of the first such weight, or the number of the step.
        """
        self._finite.settle()
        trained = ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)
        wrong = next((name for name, weight in trained if not _local(weight).isfinite().all()), None)
        found = torch.tensor([wrong is not None], device=self.args.device, dtype=torch.int64)
        if self.args.world_size > 1:
            found = self.accelerator.gather(found)
        if found.any():
            raise NumericsError(
                f"after step {self.state.global_step} the weight {wrong or 'in another process'} is not finite",
                remedy=f"nothing was saved{self._resumable()}; lower learning_rate",
            )

    @override
    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """transformers' optimizer, or LoRA+ (two learning rates) on the same class."""
        if self._loraplus_lr_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        from peft.optimizers import create_loraplus_optimizer

        optimizer_class, keywords = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        learning_rate = keywords.pop("lr")
        self.optimizer = create_loraplus_optimizer(
            self.model,
            optimizer_class,
            lr=learning_rate,
            loraplus_lr_ratio=self._loraplus_lr_ratio,
            loraplus_lr_embedding=learning_rate,
            loraplus_weight_decay=self.args.weight_decay,
            **keywords,
        )
        return self.optimizer

    # ---- evaluation ----

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The weights that an optimizer without a schedule means, an average; afterwards those that it steps with, to
        the bit. Other optimizers know no difference."""
        optimizer = getattr(self.optimizer, "optimizer", None)
        if not callable(getattr(optimizer, "eval", None)):
            yield
            return
        trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        former = [weight.detach().clone() for weight in trained]
        self.optimizer.eval()
        try:
            yield
        finally:
            self.optimizer.train()
            for weight, value in zip(trained, former, strict=True):
                weight.data.copy_(value)

    def finish_weights(self) -> None:
        """Leave the weights as they are to be kept, and refuse them where they are not finite."""
        best = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        if self.optimizer is not None and not best:
            self.optimizer.eval()  # type: ignore[attr-defined]  # accelerate's wrapper has it for every optimizer
        self.check_weights()

    def _eval_batches(self, eval_dataset: Any) -> torch.utils.data.DataLoader[Any]:
        training_collator, self.data_collator = self.data_collator, self._eval_collator
        try:
            return self.get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator

    @override
    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Evaluation rows in their own order, whatever the layout of training."""
        return SequentialSampler(eval_dataset) if self.args.world_size == 1 else None

    @override
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and token accuracy over all labelled tokens, and the task's metrics when answers are generated.

        Evaluating changes nothing: weights, modes and random streams are afterwards what they were before.
        """
        started = time.perf_counter()
        # counted in the history, which a checkpoint keeps, so that a resumed run generates at the same evaluations
        earlier = sum(f"{metric_key_prefix}_loss" in entry for entry in self.state.log_history)
        with untouched(self.model), self._averaged():
            metrics = self._token_metrics(self._eval_batches(eval_dataset))
            if self._generation_metrics is not None and earlier % self._generate_every == 0:
                model = self.accelerator.unwrap_model(self.model)
                with self.accelerator.autocast():  # PEFT generates past the forward pass that the trainer wrapped
                    metrics |= self._generation_metrics(model, self.state.global_step, metrics)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._tokens, self._tokens_since = 0, time.perf_counter()
        return metrics

    @torch.no_grad()
    def _token_metrics(self, dataloader: torch.utils.data.DataLoader[Any]) -> dict[str, float]:
        model = self.model_wrapped if self.is_in_train or self.is_deepspeed_enabled else self.model
        model.eval()
        totals = torch.zeros(4, dtype=torch.float64, device=self.args.device)
        for batch in dataloader:
            batch.pop("origins")
            inputs = self._prepare_inputs(batch)
            labels, weights = inputs.pop("labels"), inputs.pop("weights", None)
            with self.compute_loss_context_manager():
                losses = token_losses(
                    model, inputs, labels, weights, chosen_positions=self._chosen_positions, count_correct=True
                )
            totals += self.accelerator.gather_for_metrics(row_totals(losses).to(self.args.device)).sum(0)
        return token_figures(totals)

    # ---- logging and saving ----

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._finite.settle()
        if "loss" in logs:
            seconds = time.perf_counter() - self._tokens_since
            tokens = self.accelerator.gather(torch.as_tensor(self._tokens, device=self.args.device)).sum().item()
            logs["tokens_per_second"] = round(tokens / max(seconds, 1e-9), 1)
            self._tokens, self._tokens_since = 0, time.perf_counter()
        super().log(logs, start_time)

    @override
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # a pickle of the arguments helps nobody who has run.json, and pickles are not opened here
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    def _batches(self) -> checkpoint.Batches:
        args = self.args
        rows = args.per_device_train_batch_size
        return checkpoint.Batches(args.world_size, rows, rows * args.world_size * args.gradient_accumulation_steps)

    @override
    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this evaluation is the best one so far; if the best model is to be kept, it is saved at once.

        Otherwise a best model between two planned checkpoints would be reported and lost.
        """
        is_best: bool = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_best

    @override
    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.check_weights()
        former, progress = self.state.best_model_checkpoint, self.progress()
        folder = Path(self.args.output_dir)
        saved = folder / f"checkpoint-{self.state.global_step}"
        with space.saving(saved, space.checkpoint_bytes(self)) if self.args.should_save else nullcontext():
            # a resumed run comes out of evaluation mode as this one does, to the bit
            self.optimizer.eval()  # of those without modes, accelerate's wrapper does nothing
            transformers.Trainer._save_checkpoint(self, model, trial)  # SFTTrainer's would add a model card of its own
            self.optimizer.train()
            self.accelerator.wait_for_everyone()  # other processes save their random states, or pieces of the weights
            if not self.args.should_save:
                return
            self.write_progress(saved, progress)
            self._complete_checkpoint(saved)
            checkpoint.commit(saved, self._batches())
        belongings.drop_replaced(folder)
        best = self.state.best_model_checkpoint
        if former is not None and former != best and self._is_surplus(Path(former)):
            checkpoint.remove(Path(former))
        self.rotate_checkpoints()

    def rotate_checkpoints(self) -> None:
        """Remove those beyond what is kept; also at the end, since a run may have been killed in its last rotation."""
        best = self.state.best_model_checkpoint
        checkpoint.rotate(Path(self.args.output_dir), self._keep_checkpoints, Path(best) if best else None)

    def _is_surplus(self, folder: Path) -> bool:
        """Whether a checkpoint of this run is there only because it was the best one."""
        ours = folder.is_dir() and folder.parent.resolve() == Path(self.args.output_dir).resolve()
        unplanned = self.args.save_strategy == "steps" and checkpoint.step_of(folder) % self.args.save_steps
        return ours and bool(unplanned)


def _local(weight: torch.Tensor) -> torch.Tensor:
    """The part of a weight that this process holds."""
    return weight.to_local() if hasattr(weight, "to_local") else weight
