"""Several trainings side by side: curves and last values, from what their output folders hold."""

from collections.abc import Sequence
from pathlib import Path

from slowfast.visualization.plots import Curve, Panel
from slowfast.visualization.results import JobResults

# Key of the records -> title of its panel; of the errors, the first that any run has.
_RESULTS = {"top1_err": "Top-1 error in percent", "map": "mAP in percent"}


def run_names(jobs: Sequence[JobResults]) -> list[str]:
    """Short names of the runs, all different: the last parts of their folders."""
    folders = [Path(job.folder).absolute().parts for job in jobs]
    for count in range(1, max(map(len, folders), default=1) + 1):
        names = ["/".join(parts[-count:]).replace(",", " ") for parts in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def clips_per_step(job: JobResults) -> int | None:
    """Clips of a step on all machines; None where it is not known or changes on the way (multigrid)."""
    settings = job.settings
    cycles = settings.get("MULTIGRID.LONG_CYCLE") or settings.get("MULTIGRID.SHORT_CYCLE")
    if cycles or not settings.get("TRAIN.BATCH_SIZE"):
        return None
    return settings["TRAIN.BATCH_SIZE"] * settings.get("NUM_SHARDS", 1)


def compare_panels(jobs: Sequence[JobResults]) -> list[Panel]:
    """Loss, error or mAP, learning rate, throughput and waiting for data, one curve per run (validation dashed).

    Training is shown step by step where the log has single steps, else by epochs. Panels without a curve are left out.
    """
    names = run_names(jobs)
    result = next((key for key in _RESULTS if any(_points(job, "val_epoch", key)[0] for job in jobs)), "top1_err")
    in_clips = all(clips_per_step(job) for job in jobs)
    loss, errors, rates, paces, waits = [], [], [], [], []
    for job, name in zip(jobs, names, strict=True):
        kind = "train_iter" if job.history("train_iter") else "train_epoch"
        noisy = kind == "train_iter"
        for curves, key in ((loss, "loss"), (errors, result)):
            curves.append(Curve(name, *_points(job, kind, key), noisy=noisy))
            curves.append(Curve(f"{name}, validation", *_points(job, "val_epoch", key), role="val", dashed=True))
        rates.append(Curve(name, *_points(job, kind, "lr")))
        places, seconds = _points(job, kind, "dt")
        _, waiting = _points(job, kind, "dt_data")
        scale = clips_per_step(job) if in_clips else 1
        kept = [(place, step) for place, step in zip(places, seconds) if step > 0]
        paces.append(Curve(name, [p for p, _ in kept], [scale / step for _, step in kept], noisy=noisy))
        if len(waiting) == len(seconds):
            shares = [100 * data / step if step > 0 else 0.0 for data, step in zip(waiting, seconds)]
            waits.append(Curve(name, places, shares, noisy=noisy))
    panels = [
        Panel("Loss", _drawn(loss)),
        Panel(_RESULTS[result], _drawn(errors), (0, None)),
        Panel("Learning rate", _drawn(rates), (0, None)),
        Panel("Clips per second" if in_clips else "Steps per second", _drawn(paces), (0, None)),
        Panel("Waiting for data, percent of the time", _drawn(waits), (0, 100)),
    ]
    return [panel for panel in panels if panel.curves]


def compare_rows(jobs: Sequence[JobResults]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows of a table of the last values of each run; "-" where there is none."""
    heads = ("run", "epoch", "loss", "error", "val error", "best", "val mAP", "rate", "clips/s", "waiting")
    rows = []
    for job, name in zip(jobs, run_names(jobs), strict=True):
        kind = "train_epoch" if job.history("train_epoch") else "train_iter"
        history = job.history(kind)
        last = history[-1][1] if history else {}
        evaluations = [record for _, record in job.history("val_epoch")]
        final = evaluations[-1] if evaluations else {}
        best = min((record["top1_err"] for record in evaluations if "top1_err" in record), default=None)
        clips, step = clips_per_step(job), last.get("dt")
        waiting = f"{100 * last['dt_data'] / step:.0f} %" if step and "dt_data" in last else "-"
        rows.append(
            (
                name,
                f"{history[-1][0]:g}" if history else "-",
                _shown(last.get("loss"), "{:.4f}"),
                _shown(last.get("top1_err"), "{:.2f}"),
                _shown(final.get("top1_err"), "{:.2f}"),
                _shown(best, "{:.2f}"),
                _shown(final.get("map"), "{:.2f}"),
                _shown(last.get("lr"), "{:.3g}"),
                _shown(clips / step if clips and step else None, "{:.1f}"),
                waiting,
            )
        )
    return heads, rows


def _points(job: JobResults, kind: str, key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the records of ``kind`` that have ``key``."""
    found = [(place, record[key]) for place, record in job.history(kind) if isinstance(record.get(key), int | float)]
    return [place for place, _ in found], [float(value) for _, value in found]


def _drawn(curves: Sequence[Curve]) -> list[Curve]:
    return [curve for curve in curves if len(curve.x)]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
