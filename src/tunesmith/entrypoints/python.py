"""The front door for Python programs and notebooks: ``tunesmith.train``, ``load``, ``preview``, and what they return.

Settings go the way of a command line's, so a call means what the command means, and ``run.json`` names that command.
Nothing here ends the process; what goes wrong is raised.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.config.names import NameTable
from tunesmith.config.overrides import as_arguments
from tunesmith.entrypoints.call import Config, called, check_choice, path_of, permitted, resolved_of, rows_of
from tunesmith.errors import StorageError
from tunesmith.imports import lean_imports

if TYPE_CHECKING:
    from tunesmith.data.preview import PreviewRow
    from tunesmith.evaluate.compare import Comparison
    from tunesmith.evaluate.result import EvaluationResult
    from tunesmith.export.asked import BaseKind, DTypeName
    from tunesmith.export.merge import Merged

FRAME = '<iframe sandbox="" style="width: 100%; height: 32rem; border: 0" title="Preview" srcdoc="{page}"></iframe>'
"""What a notebook shows of a page: it runs no script, and neither it nor the notebook changes the other's looks."""


def train(config: Config | None = None, *, dialect: str | None = None, **settings: Any) -> Run:
    """Fine-tune a model, to the end or until a signal stops it, and return the run.

    Everything is checked first, as ``tunesmith check`` does, and progress goes to standard error. With more than one
    process (``num_processes``, or several GPUs) they are started and awaited here. In the main thread SIGINT, which is
    what interrupts a notebook's cell, finishes the step and saves; beside it signals are left alone.

    Args:
        config: a configuration file, or settings by name; None for a run that keywords alone describe.
        dialect: the file's dialect, where it cannot be told by its suffix and keys.
        **settings: settings under any name that a command line takes; they beat the file's.

    Returns:
        The run, whose folder is the setting ``output_dir``.

    Raises:
        ConfigError: a file, a name or a value is wrong; every problem is in the error.
        DataError, ModelError, NumericsError, StorageError, UnsafeError: what else prevents or ends the run.
        Interrupted: a signal stopped it after it had saved; ``resume_from_checkpoint="latest"`` goes on.
    """
    from tunesmith.cli.train import run_resolved

    with called():
        resolved, words = resolved_of(config, dialect, settings)
        run_resolved(resolved, ["-m", "tunesmith", "train", *words])
    return Run(Path(resolved.config.training.output_dir))


def load(folder: str | os.PathLike[str]) -> Run:
    """Open the folder of a run, finished or not; no model is loaded.

    Raises:
        StorageError: there is no run of ours, or its record is damaged.
    """
    from tunesmith.report.record import read_facts

    with called():
        run = Run(Path(folder))
        read_facts(run.folder)
    return run


def preview(
    config: Config | None = None,
    *,
    num: int | None = None,
    row: int | None = None,
    where: Literal["cut", "dropped", "longest"] | None = None,
    dialect: str | None = None,
    **settings: Any,
) -> Preview:
    """What a run would train on, token by token, before any model is loaded.

    Args:
        config: as in ``train``.
        num: rows to show; the first batch, at most 8, when left out.
        row: the row at this line of its file, counted from 1.
        where: such rows in the place of the first batches.
        dialect: as in ``train``.
        **settings: as in ``train``.

    Returns:
        The rows; a notebook shows them in colours, ``print`` with marks around what is trained.

    Raises:
        TunesmithError: as ``train`` would before it loads the model.
    """
    check_choice(num, row, where)
    from tunesmith.cli import environment

    with called():
        resolved, _ = resolved_of(config, dialect, settings)
        environment.prepare(resolved)
        with lean_imports():
            from tunesmith.train import preview as rows

        if row is not None:
            shown = rows.row_at(resolved, row)
        elif where is not None:
            shown = rows.rows_where(resolved, where, num)
        else:
            shown = rows.first_batches(resolved, num)
    return Preview(shown.title, resolved.config.model.model_name_or_path, shown.rows, shown.facts)


@dataclass(frozen=True, slots=True)
class Preview:
    """Rows of a run, token by token.

    Attributes:
        title: which rows they are.
        model: the model whose tokenizer made the tokens.
        rows: each with ``source``, ``tokens`` (``id``, ``text``, ``trained``, ``weight``) and a ``note``.
        facts: what is to be known of all rows, in sentences.
    """

    title: str
    model: str
    rows: list[PreviewRow] = field(repr=False)
    facts: list[str] = field(default_factory=list, repr=False)

    def html(self) -> str:
        """One self-contained page; whatever the rows hold is text in it."""
        from tunesmith.report.preview import page

        return page(self.title, self.model, self.facts, self.rows)

    def __str__(self) -> str:
        """The rows with marks around what is trained."""
        from tunesmith.cli.preview import plain_lines
        from tunesmith.train.preview import Preview as Shown

        return "\n".join(plain_lines(Shown(self.title, self.rows, self.facts)))

    def _repr_html_(self) -> str:
        return FRAME.format(page=html.escape(self.html()))


class Run:
    """A run folder and what can be done with it; each call reads the folder anew.

    Attributes:
        folder: the run folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        try:
            figures = "".join(
                f", {name} {value:.4g}" for name, value in self.metrics.items() if isinstance(value, float)
            )
            return f"<Run {self.folder}: {self.status}{figures}>"
        except StorageError:
            return f"<Run {self.folder}: no record>"

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``failed``, ``interrupted`` or ``killed``.

        Raises:
            StorageError: there is no run of ours in the folder, or its record is damaged.
        """
        from tunesmith.report.told import status_now
        from tunesmith.train.lock import is_held

        return status_now(is_held)(self._facts(), self.folder)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting of the run by its path (``training.learning_rate``), without secrets.

        Raises:
            StorageError: as ``status``.
        """
        return dict(self._facts()["settings"])

    @property
    def metrics(self) -> dict[str, Any]:
        """Figures of the end of training: the last loss, and those of the last or best evaluation; empty before.

        Raises:
            StorageError: as ``status``.
        """
        return dict((self._facts().get("result") or {}).get("metrics") or {})

    @property
    def history(self) -> list[dict[str, Any]]:
        """Every logged entry in order, as ``metrics.jsonl`` has it: ``step`` beside loss, learning rate, ``eval_...``.

        Raises:
            StorageError: the file cannot be read.
        """
        from tunesmith.report.folder import read_jsonl
        from tunesmith.report.plots import METRICS

        file = self.folder / METRICS
        with called():
            return list(read_jsonl(file)) if file.is_file() else []

    def evaluate(
        self, data: str | os.PathLike[str] | None = None, *, limit: int | None = None, **settings: Any
    ) -> EvaluationResult:
        """Have the model answer rows that were held out, and score the answers.

        Args:
            data: other rows than the run's own evaluation rows.
            limit: the first rows only.
            **settings: settings of the sections evaluation and data; ``base_model`` where the base has moved.

        Returns:
            ``metrics``, a prediction for each row, and kinds of ``mistakes``; the files are in ``RUN/evaluation``.

        Raises:
            DataError: there is nothing to evaluate on, or a row cannot be used.
            ConfigError, ModelError, StorageError, UnsafeError: as ``tunesmith evaluate``.
        """
        with self._loading():
            from tunesmith.cli.progress import follow

            with lean_imports():
                from tunesmith.evaluate.run import evaluate_run

            words = as_arguments(settings, NameTable())
            with follow("answers") as progress:
                return evaluate_run(self.folder, data=path_of(data), limit=limit, settings=words, progress=progress)

    def compare(
        self,
        *others: Run | str | os.PathLike[str],
        data: str | os.PathLike[str] | None = None,
        limit: int | None = None,
        **settings: Any,
    ) -> Comparison:
        """Evaluate several models on the same rows, and compare them with the first.

        Args:
            *others: runs, or models as ``tunesmith evaluate`` takes them, each compared with this run; none compares
                this run with the model that it began with.
            data: as in ``evaluate``.
            limit: as in ``evaluate``.
            **settings: as in ``evaluate``.

        Returns:
            ``models`` with all figures of each, ``differences``; ``text()`` is a table.

        Raises:
            ConfigError: a model is named twice.
            DataError, ModelError, StorageError, UnsafeError: as ``evaluate``.
        """
        with self._loading():
            with lean_imports():
                from tunesmith.evaluate.run import evaluate_several

            names = [self.folder, *(other.folder if isinstance(other, Run) else os.fspath(other) for other in others)]
            words = as_arguments(settings, NameTable())
            return evaluate_several(names, baseline=not others, data=path_of(data), limit=limit, settings=words)

    def predict(
        self,
        rows: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
        *,
        column: str = "output",
        read: bool = False,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """The model's answer to every row.

        Args:
            rows: a file, folder or URL, or rows as mappings of column to value; answers need not be among them.
            column: the column that the answer is put into.
            read: add what the task reads out of each answer (``read``, ``read_as``).
            **settings: as in ``evaluate``.

        Returns:
            The rows in their order, each with ``column``, and with ``stopped``: whether the answer came to its end.

        Raises:
            ConfigError: a setting is wrong, or the rows have a column of that name.
            DataError: there are no rows, or one cannot be asked.
            ModelError, StorageError, UnsafeError: as ``evaluate``.
        """
        with self._loading():
            from tunesmith.cli.progress import follow

            with lean_imports():
                from tunesmith.evaluate.predict import predict

            given, words = rows_of(rows), as_arguments(settings, NameTable())
            with follow("answers") as progress:
                return predict(self.folder, given, column=column, reads=read, settings=words, progress=progress)

    def merge(
        self,
        output: str | os.PathLike[str],
        *,
        dtype: DTypeName = "bfloat16",
        base: BaseKind = "trained",
        base_model: str | None = None,
        data: str | os.PathLike[str] | None = None,
        proof: bool = True,
        **permissions: bool,
    ) -> Merged:
        """Fold the adapter into its base, as one plain model, and prove that it answers as before.

        Args:
            output: a new folder.
            dtype: dtype of the merged weights.
            base: ``trained`` folds into the base as it was multiplied with (dequantized), ``original`` into the
                published weights.
            base_model: another place of the base.
            data: rows for the proof; the run's evaluation rows when left out.
            proof: compare the merged model with the run's.
            **permissions: what lets code run (``trust_remote_code``, ``allow_remote_code``), as on a command line.

        Returns:
            ``path`` of the merged model, and the ``proof``.

        Raises:
            ModelError: the run has no adapter, or it and the base do not belong together.
            NumericsError: the merged model is not what was trained; nothing is left behind.
            StorageError: ``output`` is not empty, or cannot be written; or the run is not finished.
        """
        with self._loading():
            with lean_imports():
                from tunesmith.evaluate.prompts import questions_for
                from tunesmith.export.merge import merge
            from tunesmith.report.belongings import check_finished

            check_finished(self.folder)
            adapter, allowed = self._adapter_folder(), permitted(permissions)
            return merge(
                adapter,
                Path(output),
                questions=questions_for(adapter, data=path_of(data), base_model=base_model, permissions=allowed)
                if proof
                else None,
                dtype=dtype,
                base=base,
                base_model=base_model,
                permissions=allowed,
            )

    def report(self, output: str | os.PathLike[str] | None = None) -> Path:
        """Write one self-contained page about the run, and return where it is: ``RUN/report.html`` when left out.

        Raises:
            StorageError: something else is at that place, or it cannot be written.
        """
        with called():
            from tunesmith.report.page import write_report
            from tunesmith.report.told import status_now
            from tunesmith.train.lock import is_held

            place = None if output is None else Path(output)
            return write_report([self.folder], place, status_of=status_now(is_held))

    def _facts(self) -> dict[str, Any]:
        from tunesmith.report.record import read_facts

        return read_facts(self.folder)

    def _adapter_folder(self) -> Path:
        """Where the run keeps its adapter: the record names it."""
        place = (self._facts().get("adapter") or {}).get("folder")
        return self.folder / place if isinstance(place, str) else self.folder

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Around what loads the run's model."""
        from tunesmith.cli import environment

        with called():
            self._facts()  # a name without a run would be looked for as a model
            environment.prepare()
            yield
