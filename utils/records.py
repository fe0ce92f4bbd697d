"""The CSV files that runs write: a log of epochs each, and records of runs."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.cli import InputError

# Columns may be added at the end of these, never elsewhere: people's scripts read them.
LOG = (
    "epoch,lr,alpha,train_loss,objective,ns_objective,test_loss,test_accuracy,"
    "gamma_zeros,xi_zeros,train_seconds,test_seconds,change"
).split(",")
TRAINED = (
    "run,method,arch,depth,dataset,seed,epochs,s,beta,prox_every,precision,channels,"
    "gamma_zeros,xi_zeros,test_accuracy,best_accuracy,seconds_per_epoch,checkpoint,command,"
    "subset,batch_size,commit,python,torch,device,threads,processes"
).split(",")
PRUNED = (
    "model,run,method,arch,depth,dataset,seed,s,beta,percent,channels,channels_kept,"
    "channels_pruned_percent,parameters,parameters_kept,parameters_pruned_percent,flops,"
    "flops_kept,flops_pruned_percent,paper_parameters_pruned_percent,"
    "paper_flops_pruned_percent,accuracy_before,accuracy_masked,accuracy_slim,"
    "mask,silent,constant,alive,difference_masked,changed_masked,near_ties_masked,"
    "difference_slim,changed_slim,near_ties_slim,largest_logit,target_flops,target_params"
).split(",")


def read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of ``path``, none where there is no such file.

    Raises InputError when the file is not one of ours: other columns, or not text.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            header = reader.fieldnames
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): move it away") from None
    if header is not None and list(header) != list(columns):
        raise InputError(f"{path} has other columns than this program writes: move it away")
    return rows


def append(path: Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Append ``row``, with a header first where the file is new. None is written as nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    if not path.exists() or path.stat().st_size == 0:
        writer.writeheader()
    writer.writerow(row)
    with path.open("a", newline="", encoding="utf-8") as file:
        file.write(text.getvalue())


def keep_epochs(path: Path, done: int) -> list[dict[str, str]]:
    """Keep the log's lines of epochs 1 to ``done``: a resumed run writes the later ones again.

    Raises InputError when a line of the log is none of ours.
    """
    try:
        rows = [row for row in read(path, LOG) if int(row["epoch"]) <= done]
        for row in rows:
            float(row["train_seconds"]), float(row["test_accuracy"])
    except (TypeError, ValueError):
        raise InputError(f"{path} has a line that is no epoch's: move it away") from None
    if path.exists():
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, LOG)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, path)
    return rows
