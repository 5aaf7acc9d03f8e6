"""What SFTTrainer takes out of a checkpoint and puts into one, where that is not enough to go on as if nothing had
been between.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from transformers import set_seed
from transformers.trainer_callback import ExportableState, TrainerState
from typing_extensions import override

from tunesmith.model.adapter_file import read_adapter
from tunesmith.model.adapters import see_that_all_arrived, trained_tensors
from tunesmith.report.folder import read_json, write_json
from tunesmith.train import checkpoint
from tunesmith.train.best import best_complete
from tunesmith.train.lean_trl import SFTTrainer
from tunesmith.train.processes import process_seed
from tunesmith.train.schedule import reschedule, values_of
from tunesmith.train.start import problem_here
from tunesmith.train.state_files import PROGRESS, STATE, check_states, usable


def check_trainer_state(folder: Path) -> None:
    """Refuse a state that nobody here can continue, before anything is changed because of it.

    Raises:
        StorageError: its files hold something else than a run writes, or the library of today cannot read them.
    """
    check_states(folder)
    with usable(folder, "state"):
        TrainerState.load_from_json(str(folder / STATE))


class ResumingTrainer(SFTTrainer):
    """SFTTrainer that goes on from a checkpoint exactly, and under this run's own settings.

    Attributes:
        resumed: the checkpoint that the run continues; its files have been checked.
        rescheduled: settings whose new values replace those of the checkpoint.
    """

    resumed: checkpoint.Checkpoint | None = None
    rescheduled: frozenset[str] = frozenset()

    @override
    def _init_training_state(self, max_steps: int, *args: Any) -> tuple[int, int]:
        """The checkpoint's place in the run; intervals are this run's, and the best checkpoint is one that is there."""
        with usable(self.resumed.path if self.resumed else None, "state"):
            places: tuple[int, int] = super()._init_training_state(max_steps, *args)
        if self.resumed is not None:
            self.state.compute_steps(self.args, max_steps)
            if self.args.load_best_model_at_end and self.state.best_global_step:
                self._settle_best()
        return places

    @override
    def _load_callback_state(self) -> None:
        """Callbacks get the checkpoint's counts and keep this run's settings."""
        asked = {
            type(callback): callback.state().get("args", {})
            for callback in self.callback_handler.callbacks
            if isinstance(callback, ExportableState)
        }
        super()._load_callback_state()
        for callback in self.callback_handler.callbacks:
            for name, value in asked.get(type(callback), {}).items():
                setattr(callback, name, value)

    def _settle_best(self) -> Any:
        """Take the best checkpoint that is complete for the best one; returns it, with what its files were like."""
        folders = [Path(str(self.args.output_dir))] + ([self.resumed.path.parent] if self.resumed else [])
        stamps: dict[Path, checkpoint.Stamps] = {}
        best = best_complete(
            self.state.log_history,
            str(self.args.metric_for_best_model),
            list(dict.fromkeys(folders)),
            lambda folder: problem_here(folders[0], folder, stamps),
            greater_is_better=bool(self.args.greater_is_better),
        )
        if best is None:
            return None
        self.state.best_global_step, self.state.best_metric = best.step, best.value
        self.state.best_model_checkpoint = os.fspath(best.path)
        return checkpoint.Checkpoint(best.path, best.step, stamps[best.path])

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._load_portable(resume_from_checkpoint):
            with usable(resume_from_checkpoint, "weights"):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            self._complete_adapter(resume_from_checkpoint)

    @override
    def _load_best_model(self) -> None:
        """The weights of the best checkpoint that is complete by now."""
        best = self._settle_best()
        if best is None:
            return
        if not self._load_portable(str(best.path)):
            with usable(best.path, "weights"):
                super()._load_best_model()
            self._complete_adapter(str(best.path))
        checkpoint.check_untouched(best)

    def _load_portable(self, folder: str) -> bool:
        """Load an adapter that took its start out of the base; False where this is none, or another engine loads it."""
        model: Any = self.model
        if getattr(model, "initial_adapter", None) is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        set_peft_model_state_dict(model, trained_tensors(model, read_adapter(Path(folder)).tensors, folder))
        return True

    def _complete_adapter(self, folder: str) -> None:
        """See that the whole adapter was loaded; the weights of other models, and other engines, are their loader's."""
        if isinstance(self.model, PeftModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            see_that_all_arrived(self.model, read_adapter(Path(folder)).tensors, Path(folder))

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The checkpoint's states; values that were changed on purpose are this run's."""
        fresh = values_of(self.optimizer)
        with usable(checkpoint, "optimizer or schedule"):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.rescheduled and not self.is_deepspeed_enabled:
            reschedule(self.optimizer, self.lr_scheduler, fresh, self.rescheduled)

    @override
    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Continue this process's random streams; where another number of processes wrote the checkpoint there are
        none to continue, and new ones begin. This is the last that is read of a checkpoint."""
        if checkpoint is None or Path(checkpoint, self._rng_file()).is_file():
            with usable(checkpoint, "random state"):
                super()._load_rng_state(checkpoint)
        else:
            set_seed(process_seed(self.args.seed, self.state.global_step))
        if checkpoint is not None:
            self._load_progress(Path(checkpoint))

    def _rng_file(self) -> str:
        return f"rng_state_{self.args.process_index}.pth" if self.args.world_size > 1 else "rng_state.pth"

    def _load_progress(self, folder: Path) -> None:
        """Go on with the losses since the last logged line, so that the next line is what it would have been."""
        values = read_json(folder / PROGRESS)
        losses = values["losses"]
        same = len(losses) == self.args.world_size
        loss = losses[self.args.process_index] if same else sum(losses) / len(losses)
        self._tr_loss += torch.tensor(loss, dtype=self._tr_loss.dtype)
        self._globalstep_last_logged = values["last_logged_step"]
        if self.resumed is not None:
            checkpoint.check_untouched(self.resumed)

    def progress(self) -> dict[str, Any]:
        """The losses of all processes since the last logged line, which all of them must ask for."""
        losses = self.accelerator.gather(self._tr_loss.reshape(1))
        return {"last_logged_step": self._globalstep_last_logged, "losses": losses.tolist()}

    def write_progress(self, folder: Path, progress: dict[str, Any]) -> None:
        """Put them into a checkpoint."""
        write_json(folder / PROGRESS, progress)
